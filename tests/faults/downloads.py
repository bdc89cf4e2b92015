"""Rows 17 to 22: servers and networks that fail, and URLs that lead out of the cache."""

import signal
import time
from pathlib import Path

from helpers import faulty_server
from helpers.faulty_server import Handler, send_data, serve, stalling, status
from helpers.ftp_server import serve_ftp

from . import inject
from .checkpoints import flip
from .frame import case, check, finished, named, row
from .lab import Lab
from .look import TIME_LIMIT, contents, weights

row(
    17, "a download that breaks off", "goes on where it stopped; after five tries named, and nothing is taken for whole"
)
row(18, "a cut file or a web page instead of weights", "refused; the next try downloads again")
row(
    19,
    "a server that stalls or fails, or no network",
    "tried again, then named with the URL; the cache is used offline",
)
row(20, "six processes that download one file", "one request, six good files")
row(21, "SIGKILL in a download; a changed file in the cache", "the next run heals it, or names the file")
row(22, "URLs that lead out of the cache", "refused before anything is written")

ONE_STEP = ("SOLVER.MAX_ITER", 1)


class Site:
    """A server of weights for one case, and the cache of the runs."""

    def __init__(self, lab: Lab, server, suffix: str = ".pth"):
        self.lab, self.server, self.cache = lab, server, lab.folder / "cache"
        server.file = lab.shared.weights_file(suffix).read_bytes()
        self.url = f"{server.root}/some/model{suffix}"

    def start(self, url: str = "", out: Path | None = None, **environment: str):
        """Start a training of one iteration from the URL."""
        environment = {"FVCORE_CACHE": str(self.cache), "NO_PROXY": "127.0.0.1"} | environment
        faults = [] if self.lab.stock else [(inject.shorten_waits,)]
        out = out or self.lab.out()
        return self.lab.start(out, *ONE_STEP, weights=url or self.url, environment=environment, faults=faults)

    def train(self, url: str = "", out: Path | None = None, timeout: float = 30, **environment: str):
        """Train one iteration from the URL."""
        return self.start(url, out, **environment).wait(timeout)

    def heals(self) -> str:
        """Check that a run with the server as it is now gets the right weights."""
        out = self.lab.out()
        finished(self.train(out=out))
        check(weights(out / "model_final.pth") == self.lab.shared.from_weights(self.lab.stock), "the weights differ")
        return "survived"

    def whole_files(self) -> list[str]:
        """Names of the large files in the cache that are not marked as partial."""
        files = [f for f in self.cache.rglob("*") if f.is_file() and f.stat().st_size > 1000]
        return [f.name for f in files if not f.name.endswith((".part", ".tmp", ".lock", ".json"))]


def cut_after(share: float, announced: bool):
    """Return an answer that ends after a share of the file, with or without Content-Length."""

    def answer(handler: Handler) -> None:
        data = handler.server.file
        headers = {"Content_Length": len(data), "ETag": handler.server.etag} if announced else {}
        send_data(data[: int(share * len(data))], **headers)(handler)

    return answer


# --- 17 to 19 ---------------------------------------------------------------------------------------------------


@case(17, "once")
def cut_once(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        server.answers = [cut_after(0.5, announced=True)]
        return site.heals()


@case(17, "each time", fast=True)
def cut_always(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        server.answers = [cut_after(0.1, announced=True)] * 20
        sentence = named(site.train(), server.root)
        check(not site.whole_files(), f"{site.whole_files()} is in the cache")
        return sentence


@case(18, ".pth without its end, no length", ".pth", cut_after(0.9, announced=False))
@case(18, ".safetensors without its end, no length", ".safetensors", cut_after(0.9, announced=False), stock=False)
@case(18, ".pkl without its end, no length", ".pkl", cut_after(0.9, announced=False))
@case(18, "a web page", ".pth", send_data(faulty_server.PAGE))
@case(18, "an empty file", ".pth", send_data(b""))
def not_whole(lab: Lab, suffix: str, answer) -> str:
    with serve() as server:
        site = Site(lab, server, suffix)
        server.answers = [answer] * 20
        sentence = named(site.train(), server.root, site.cache)
        server.answers = []
        site.heals()
        return sentence


@case(19, "a server that stalls")
def stalled(lab: Lab) -> str:
    with serve() as server, stalling() as stall:
        site = Site(lab, server)
        server.answers = [stall(b"PK")] * 20
        return named(site.train(timeout=25), server.root)


@case(19, "503 three times")
def unavailable(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        server.answers = [status(503)] * 3
        return site.heals()


@case(19, "503 each time", 503)
@case(19, "404", 404)
def failing(lab: Lab, code: int) -> str:
    with serve() as server:
        site = Site(lab, server)
        server.answers = [status(code)] * 20
        return named(site.train(), server.root)


@case(19, "no server")
def no_server(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
    return named(site.train(), "127.0.0.1")


@case(19, "no network, file in the cache", True)
@case(19, "no network, file not in the cache", False)
def offline(lab: Lab, cached: bool) -> str:
    with serve() as server:
        site = Site(lab, server)
        if cached:
            finished(site.train())
    if cached:
        return finished(site.train(GN_DET_OFFLINE="1"))
    return named(site.train(GN_DET_OFFLINE="1"), "127.0.0.1")


# --- 20 and 21 --------------------------------------------------------------------------------------------------


@case(20, "from an empty cache")
def six_processes(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        outs = [lab.out() for _ in range(6)]
        for fork in [site.start(out=out) for out in outs]:
            finished(fork.wait(TIME_LIMIT))
        check(len(server.requests) == 1, f"{len(server.requests)} requests")
        right = lab.shared.from_weights(lab.stock)
        check(all(weights(out / "model_final.pth") == right for out in outs), "the weights differ")
        return "survived"


@case(21, "SIGKILL at three places of the download")
def kill_in_download(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        for share in (0.0, 0.4, 0.8):
            fork, size = site.start(), share * len(server.file)
            while fork.running and sum(f.stat().st_size for f in site.cache.rglob("*") if f.is_file()) <= size:
                time.sleep(0.0005)
            fork.send(signal.SIGKILL)
            lab.kills += fork.wait(TIME_LIMIT).returncode == -signal.SIGKILL
        return site.heals()


@case(21, "a bit flipped in the cache")
def flipped_in_cache(lab: Lab) -> str:
    with serve() as server:
        site = Site(lab, server)
        finished(site.train())
        (file,) = site.cache.rglob("*.pth")
        flip(file, 0.5)
        done = site.train()
        return site.heals() if done.returncode == 0 else named(done, file)


# --- 22 ---------------------------------------------------------------------------------------------------------


@case(22, "MODEL.WEIGHTS http://HOST/a/../../...", "http", fast=True)
@case(22, "MODEL.WEIGHTS http with %2e%2e", "http coded")
@case(22, "MODEL.WEIGHTS ftp://HOST/a/../../...", "ftp")
@case(22, "_BASE_ of a config", "base")
@case(22, "_BASE_ of a run folder's config.yaml, predict", "run", stock=False)
@case(22, "a redirect to file://", "redirect")
def leads_out(lab: Lab, kind: str) -> str:
    target = lab.folder / "secret" / "file.pth"
    target.parent.mkdir()
    with serve() as server, serve_ftp(b"MODEL:\n  WEIGHTS: ''\n") as ftp:
        site = Site(lab, server)
        up = "a/" + "../" * 30 + str(target).lstrip("/")
        url = {
            "http coded": f"{server.root}/{up.replace('..', '%2e%2e')}",
            "ftp": f"{ftp}/{up}",
            "redirect": f"{server.root}/model.pth",
        }.get(kind, f"{server.root}/{up}")
        before = contents(lab.folder).keys()
        done = _visit(lab, site, kind, url)
        new = contents(lab.folder).keys() - before
        outside = [name for name in new if not name.startswith(("cache/", "out")) and name != "own.yaml"]
        check(not target.exists() and not outside, f"wrote {outside} outside the cache")
        if kind.startswith("http") and done.returncode == 0:
            return finished(done)  # downloaded to a place inside the cache
        return named(done)


def _visit(lab: Lab, site: Site, kind: str, url: str):
    if kind == "redirect":
        site.server.answers = [faulty_server.redirect(f"file://{lab.shared.weights_file('.pth')}")] * 20
    if kind not in ("base", "run"):
        return site.train(url, timeout=25)
    site.server.file = b"MODEL:\n  WEIGHTS: ''\n"
    environment = {"FVCORE_CACHE": str(site.cache)}
    if kind == "run":
        out = lab.copy(lab.shared.reference(lab.stock))
        (out / "config.yaml").write_text(f"_BASE_: {url}\n")
        image = next((lab.shared.data / "val").iterdir())
        return lab.tool("predict.py", image, "--model", out, "--json", lab.folder / "out.json", **environment)
    config = lab.folder / "own.yaml"
    config.write_text(f"_BASE_: {url}\n")
    return lab.train(lab.out(), *ONE_STEP, flags=("--config-file", config), environment=environment, timeout=25)
