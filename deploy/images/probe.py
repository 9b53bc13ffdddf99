"""Ask a service on this machine whether it is ready; exit 0 if so, else 1.

The health command of the images. Reads the port from INTERLOCK_OPS_LISTEN, as the
service does, and needs nothing but the standard library, so that it is over in 0.1 s.
"""

import http.client
import os
import sys

# The service itself gives up after 2.5 s.
_TIMEOUT_S = 3


def main() -> int:
    """Return 0 when `/readyz` answers 200."""
    port = os.environ.get("INTERLOCK_OPS_LISTEN", "").rpartition(":")[2]
    if not port.isdigit():
        sys.stderr.write("INTERLOCK_OPS_LISTEN does not name a port\n")
        return 1
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        sys.stdout.write(answer.read(200).decode(errors="replace"))
    except OSError as error:
        sys.stderr.write(f"no answer: {error}\n")
        return 1
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
