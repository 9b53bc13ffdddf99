"""Ask a service on this machine whether it is ready; exit 0 if so, else 1.

The health command of the images. Reads the port from INTERLOCK_OPS_LISTEN, as the
service does. It runs every few seconds in every container, so it speaks the little HTTP it
needs by itself: the standard library's client would more than double its cost.
"""

import os
import socket
import sys

# The service itself gives up after 2.5 s.
_TIMEOUT_S = 3
_REQUEST = b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
_MOST_BYTES = 4096


def main() -> int:
    """Return 0 when `/readyz` answers 200."""
    port = os.environ.get("INTERLOCK_OPS_LISTEN", "").rpartition(":")[2]
    if not port.isdigit():
        sys.stderr.write("INTERLOCK_OPS_LISTEN does not name a port\n")
        return 1
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=_TIMEOUT_S) as asking:
            asking.sendall(_REQUEST)
            while len(answer) < _MOST_BYTES and (part := asking.recv(_MOST_BYTES)):
                answer += part
    except OSError as error:
        sys.stderr.write(f"no answer: {error}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    sys.stdout.write(body[:200].decode(errors="replace"))
    return 0 if head.split(b" ")[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
