#!/bin/sh
# Finish the tree /app of an image: our packages, compiled, everything of one date.
#
# Two builds of one source give the same files, bit for bit: caches of compiled code are
# bound to their source by hash instead of by time, hashing of names is fixed while they
# are compiled, and SOURCE_DATE_EPOCH is every file's date. The final stages only copy this
# tree, so their layers are the same too; the image's own id still differs where the engine
# writes the time of the build into it (BuildKit before 0.13, which cannot rewrite it).
set -eu

site=$(/app/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R /build/src/. "$site/"
mkdir -p /app/share
for script in probe.py relay.py prepare.py; do
  [ ! -f "/build/$script" ] || cp "/build/$script" /app/share/
done
if [ -d "$site/interlock_cli" ]; then
  printf '#!/bin/sh\nexec /app/bin/python -m interlock_cli "$@"\n' >/app/bin/interlock
  chmod 0755 /app/bin/interlock
fi
# Written by pip with what differs from build to build.
find /app -name __pycache__ -type d -prune -exec rm -rf {} +
# What no process of ours imports: sources of compiled modules, stubs, suites of tests,
# and SQLAlchemy's other databases.
find "$site" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) -delete
rm -rf "$site"/greenlet/tests "$site"/mako/testing "$site"/alembic/testing \
  "$site"/sqlalchemy/testing "$site"/sqlalchemy/dialects/mysql \
  "$site"/sqlalchemy/dialects/oracle "$site"/sqlalchemy/dialects/mssql
find /app -type f -name '*.so*' -exec strip --strip-debug {} +
PYTHONHASHSEED=0 /app/bin/python -m compileall -q -x '\.venv' \
  --invalidation-mode unchecked-hash "$site" /app/share
find /app -type d -exec chmod 0755 {} +
find /app -type f -exec chmod a+rX,go-w {} +
# The final stages copy the folder around it: they would give /app itself a date of theirs.
mkdir /out
mv /app /out/
find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
