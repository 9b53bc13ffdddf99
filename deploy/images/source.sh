#!/bin/sh
# Put our own packages, from /build/src, and scripts below /out, compiled, of one date.
#
# As install.sh: the same source gives the same files. And no folder but for files: whether a
# layer lists a folder that is below it already, and unchanged, depends on what else the
# engine has built (Docker's overlay2 compares trees where it has made the layer below twice).
set -eu

site=$(python -c 'import sysconfig; v = {"base": "/app", "platbase": "/app"}; print(sysconfig.get_path("purelib", "venv", v))')
mkdir -p "/out$site" /out/app/share
cp -R /build/src/. "/out$site/"
for script in probe.py relay.py prepare.py; do
  [ ! -f "/build/$script" ] || cp "/build/$script" /out/app/share/
done
if [ -d "/out$site/interlock_cli" ]; then
  mkdir /out/app/bin
  printf '#!/bin/sh\nexec /app/bin/python -m interlock_cli "$@"\n' >/out/app/bin/interlock
fi
find /out -name __pycache__ -type d -prune -exec rm -rf {} +
PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash \
  -s /out -p / "/out$site" /out/app/share
find /out -type d -empty -delete
find /out -type d -exec chmod 0755 {} +
find /out -type f -exec chmod a+rX,go-w {} +
[ ! -f /out/app/bin/interlock ] || chmod 0755 /out/app/bin/interlock
find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
