"""A local FTP server that sends the same file for every path."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator


class Handler(socketserver.StreamRequestHandler):
    """Answer the commands that ``urllib`` sends to read a file."""

    def handle(self) -> None:
        self.data = None
        self._say("220 ready")
        for line in self.rfile:
            word, *_ = line.decode().split() or [""]
            answer = getattr(self, f"do_{word.lower()}", None)
            if answer:
                answer()
            else:
                self._say({"USER": "331 password", "PASS": "230 welcome", "QUIT": "221 bye"}.get(word, "200 fine"))

    def do_epsv(self) -> None:
        self.data = socket.create_server(("127.0.0.1", 0))
        self._say(f"229 Entering Extended Passive Mode (|||{self.data.getsockname()[1]}|)")

    def do_pasv(self) -> None:
        self.data = socket.create_server(("127.0.0.1", 0))
        high, low = divmod(self.data.getsockname()[1], 256)
        self._say(f"227 Entering Passive Mode (127,0,0,1,{high},{low})")

    def do_retr(self) -> None:
        self._say("150 here it comes")
        connection, _ = self.data.accept()
        with connection:
            connection.sendall(self.server.file)
        self.data.close()
        self._say("226 done")

    def do_cwd(self) -> None:
        self._say("250 fine")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextlib.contextmanager
def serve_ftp(file: bytes) -> Iterator[str]:
    """Yield the URL of a running server."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close, server.file = True, False, file
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"ftp://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
