"""Show what is installed, what does not fit together, and how to mend it.

The exit code is 1 if something is broken. The module imports nothing of gn_det or of other packages before it checks them,
so that it also runs (as ``tools/doctor.py``) where they cannot be imported.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_TORCH, _PYTHON = (2, 6), (3, 11)
# Import name -> name on PyPI, of what gn_det needs beside torch, torchvision, detectron2, pycocotools and hotcoco.
_NEEDED = {
    **{
        name: name
        for name in "numpy fvcore iopath yacs safetensors contourpy tabulate tqdm matplotlib requests".split()
    },
    **{"yaml": "PyYAML", "PIL": "Pillow", "jinja2": "Jinja2", "filelock": "filelock"},
}
_DETECTRON2 = (
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git, or run make in a checkout"
)
_SHARED_MEMORY = 2**30  # bytes; DataLoader workers pass images through it


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        name: what was looked at.
        found: its version and other facts.
        problem: what is wrong; "" if nothing is.
        fix: what to do about the problem.
        broken: whether gn_det does not work with it; otherwise it only lacks something.
    """

    name: str
    found: str
    problem: str = ""
    fix: str = ""
    broken: bool = False


def cli() -> None:
    """Run the command with the arguments of the process."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    findings = examine()
    print(format_findings(findings))
    sys.exit(int(any(finding.broken for finding in findings)))


def examine() -> list[Finding]:
    """Return all findings about this machine and this Python environment."""
    findings: list[Finding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in CHECKS:
            try:
                findings += check()
            except Exception as error:  # a broken package can raise any exception
                name = check.__name__.removeprefix("_check_")
                findings.append(Finding(name, "cannot be examined", _describe(error), "see the error", broken=True))
    return findings


def format_findings(findings: list[Finding]) -> str:
    """Return the findings as text: a line for each, then a line for each problem with its fix."""
    width = max(len(finding.name) for finding in findings) + 2
    lines = [f"{finding.name:<{width}}{finding.found}" for finding in findings]
    problems = sorted((finding for finding in findings if finding.problem), key=lambda finding: not finding.broken)
    lines += ["", *(f"{'broken' if f.broken else 'note'}: {f.name}: {f.problem}: {f.fix}." for f in problems)]
    if not any(finding.broken for finding in findings):
        lines.append("Nothing is broken.")
    return "\n".join(lines)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"[:200].rstrip(".")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:2])


def _import(name: str, fix: str, broken: bool = True) -> tuple[ModuleType | None, list[Finding]]:
    """Import a module. If it cannot be imported, return the finding about it."""
    try:
        return importlib.import_module(name), []
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
        problem = "is not installed" if missing else f"cannot be imported ({_describe(error)})"
        return None, [Finding(name, "missing" if missing else "broken", problem, fix, broken or not missing)]


def _check_python() -> Iterator[Finding]:
    too_old = "gn_det needs Python 3.11 or newer" if sys.version_info < _PYTHON else ""
    found = f"{platform.python_version()}, {sys.executable}"
    yield Finding("Python", found, too_old, "create an environment with a newer Python", broken=bool(too_old))
    yield Finding("system", f"{platform.platform()}, {os.cpu_count()} CPU cores")


def _check_torch() -> Iterator[Finding]:
    torch, findings = _import("torch", "pip install torch torchvision (see pytorch.org for CUDA builds)")
    yield from findings
    if not torch:
        return
    too_old = "gn_det needs PyTorch 2.6 or newer" if _numbers(torch.__version__) < _TORCH else ""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs only"
    yield Finding("torch", f"{torch.__version__}, {build}", too_old, "pip install -U torch torchvision", bool(too_old))
    yield from _check_torchvision(torch)


def _check_torchvision(torch: ModuleType) -> Iterator[Finding]:
    fix = "install torch and torchvision together, from one index: pip install -U torch torchvision"
    requirements = (importlib.metadata.requires("torchvision") or []) if _version("torchvision") else []
    wanted = next((r[len("torch==") :].partition(";")[0].strip() for r in requirements if r.startswith("torch==")), "")
    torchvision, findings = _import("torchvision", fix)
    yield from findings
    if not torchvision:
        return
    problem = ""
    if wanted and wanted.partition("+")[0] != torch.__version__.partition("+")[0]:
        problem = f"it was built for torch {wanted}"
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        problem = f"its operators do not run with torch {torch.__version__} ({_describe(error)})"
    yield Finding("torchvision", torchvision.__version__, problem, fix, bool(problem))


def _check_gpus() -> Iterator[Finding]:
    torch = sys.modules.get("torch")
    driver = _driver()
    yield Finding("NVIDIA driver", driver or "none")
    if not torch:
        return
    count = torch.cuda.device_count()
    if not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        problem = fix = ""
        if driver and not hidden and not torch.version.cuda:
            problem, fix = (
                "PyTorch is a build for CPUs only",
                "install a CUDA build of torch and torchvision (pytorch.org)",
            )
        elif driver and not hidden:
            problem = f"PyTorch cannot use the GPU with this driver; it was built for CUDA {torch.version.cuda}"
            fix = "update the driver, or install torch and torchvision for an older CUDA (pytorch.org)"
        found = "hidden by CUDA_VISIBLE_DEVICES" if driver and hidden else "none that PyTorch can use: CPUs are used"
        yield Finding("GPUs", found, problem, fix, broken=bool(problem))
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GB, sm_{properties.major}{properties.minor}"
        archs = [
            int(arch.partition("_")[2]) // 10 for arch in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", arch)
        ]
        unknown = "PyTorch was built without kernels for it" if properties.major not in archs else ""
        yield Finding(
            f"GPU {index}", name, unknown, "install another build of torch (pytorch.org)", broken=bool(unknown)
        )
    triton = _version("triton")
    problem = "is not installed, so GPU.MIXED_PRECISION runs without gn_det's kernels" if count and not triton else ""
    yield Finding("Triton", triton or "missing", problem, "pip install triton")


def _driver() -> str:
    """Return the NVIDIA driver and its GPUs; "" if there is none that works."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def _check_detectron2() -> Iterator[Finding]:
    detectron2, findings = _import("detectron2", _DETECTRON2)
    yield from findings
    if not detectron2:
        return
    path = Path(str(detectron2.__file__)).parent
    source = "the copy in labgym" if "LabGym" in path.parts else "upstream"
    compiled = "with" if importlib.util.find_spec("detectron2._C") else "without"
    yield Finding("detectron2", f"{detectron2.__version__}, {source}, {compiled} its compiled extension, {path}")
    if not importlib.util.find_spec("pkg_resources"):
        problem = "setuptools 82 removed pkg_resources, which detectron2.model_zoo imports"
        yield Finding("setuptools", _version("setuptools") or "missing", problem, 'pip install "setuptools<82"')


def _check_coco() -> Iterator[Finding]:
    mask, findings = _import("pycocotools.mask", "pip install --force-reinstall --no-cache-dir pycocotools")
    yield from findings
    if mask:
        numpy = importlib.import_module("numpy")
        mask.encode(numpy.zeros((2, 2), dtype=numpy.uint8, order="F"))
        yield Finding("pycocotools", _version("pycocotools"))
    fix = 'pip install "hotcoco>=1.3,<2"'
    hotcoco, findings = _import("hotcoco", fix)
    yield from findings
    if hotcoco:
        version = _version("hotcoco")
        problem = "" if (1, 3) <= _numbers(version) < (2, 0) else "gn_det needs 1.3 or newer, and not 2"
        yield Finding("hotcoco", version, problem, fix, broken=bool(problem))


def _check_packages() -> Iterator[Finding]:
    versions = {name: _version(name) for name in _NEEDED.values()}
    for module, name in _NEEDED.items():
        if not importlib.util.find_spec(module):
            yield Finding(name, "missing", "is not installed", f"pip install {name}", broken=True)
    yield Finding("packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version))


def _check_opencv() -> Iterator[Finding]:
    fix = "pip uninstall opencv-python; pip install opencv-python-headless"
    cv2, findings = _import("cv2", fix, broken=False)
    if not cv2:
        (finding,) = findings
        missing = finding.found == "missing"
        problem = f"{finding.problem}, so pictures are not drawn and videos not read"
        yield Finding("OpenCV", finding.found, problem, "pip install opencv-python-headless" if missing else fix)
        return
    names = [name for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python") if _version(name)]
    problem = f"{' and '.join(names)} overwrite each other's files" if len(names) > 1 else ""
    yield Finding(
        "OpenCV", cv2.__version__, problem, f"pip uninstall {' '.join(names[1:])}, then reinstall {names[:1]}"
    )


def _check_gn_det() -> Iterator[Finding]:
    gn_det, findings = _import("gn_det", "mend the other problems first; if there are none, please report this")
    yield from findings
    if gn_det:
        yield Finding("gn_det", f"{gn_det.__version__}, {Path(str(gn_det.__file__)).parent}")


def _check_fonts() -> Iterator[Finding]:
    if "gn_det" not in sys.modules:
        return
    from gn_det.drawing.fonts import find_font

    scripts = {"Chinese": "中", "Japanese": "あ", "Korean": "한", "Arabic": "ع", "Hindi": "अ"}
    missing = [script for script, letter in scripts.items() if find_font(letter) is None]
    problem = f"no font has {', '.join(missing)} letters, which are drawn as squares" if missing else ""
    found = ", ".join(script for script in scripts if script not in missing)
    fix = "if your names have them, install such a font (apt install fonts-noto-cjk fonts-noto-core)"
    yield Finding("fonts", found or "Latin, Greek and Cyrillic", problem, fix)


def _check_machine() -> Iterator[Finding]:
    yield Finding("console", f"{getattr(sys.stdout, 'encoding', None)}; files: {sys.getfilesystemencoding()}")
    if os.path.isdir("/dev/shm"):
        size = shutil.disk_usage("/dev/shm").total
        problem = "DataLoader workers pass images through it, and can be killed" if size < _SHARED_MEMORY else ""
        fix = "start the container with --shm-size 8g, or set DATALOADER.NUM_WORKERS 0"
        yield Finding("shared memory", f"{size / 2**30:.2f} GB", problem, fix)
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield Finding("C compiler", "none", "TRAIN.COMPILE and Triton need one", "install gcc")
    cache = Path(os.path.expanduser(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")))
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    problem = "" if os.access(place, os.W_OK) else "it cannot be written to, so weights cannot be downloaded"
    yield Finding("cache", str(cache), problem, "set FVCORE_CACHE to another folder")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_check_python, _check_torch, _check_gpus, _check_detectron2, _check_coco, _check_packages, _check_opencv),
    *(_check_gn_det, _check_fonts, _check_machine),
)

if __name__ == "__main__":
    cli()
