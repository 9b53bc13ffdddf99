#!/bin/sh
# Install a lock file into /app and put what that added, finished, below /out.
#
# sh install.sh NAME      installs /build/NAME.lock
#
# Two builds of one lock give the same files, bit for bit: caches of compiled code are bound
# to their source by hash instead of by time, hashing of names and the order of files are fixed
# while they are compiled, and SOURCE_DATE_EPOCH is every file's date. The final stages only copy /out, so
# their layers are the same too; the image's own id still differs where the engine writes
# the time of the build into it (BuildKit before 0.13, which cannot rewrite it).
set -eu

export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

[ -x /app/bin/python ] || python -m venv --without-pip /app
rm -rf /out
touch /build/before
# What is new is told by its time, and a file system's clock may be coarse.
sleep 0.05
pip --python /app/bin/python install --quiet --no-compile --require-hashes \
  --only-binary :all: --requirement "/build/$1.lock"

site=$(/app/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What no process of ours imports: sources of compiled modules, stubs, suites of tests,
# SQLAlchemy's other databases, and the languages that rich could colour.
find "$site" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) -delete
rm -rf "$site"/greenlet/tests "$site"/mako/testing "$site"/alembic/testing \
  "$site"/sqlalchemy/testing "$site"/sqlalchemy/dialects/mysql \
  "$site"/sqlalchemy/dialects/oracle "$site"/sqlalchemy/dialects/mssql
[ ! -d "$site/pygments" ] || find "$site/pygments/lexers" -type f ! -name __init__.py \
  ! -name _mapping.py ! -name python.py -delete
# Wheels come with debug information, a quarter of their size.
find /app -type f -name '*.so*' -cnewer /build/before -exec strip --strip-debug {} +
# In one order: what was compiled before decides which constants a file's code marks as shared.
find "$site" -type f -name '*.py' -cnewer /build/before | LC_ALL=C sort >/build/sources
PYTHONHASHSEED=0 /app/bin/python -m compileall -q --invalidation-mode unchecked-hash -i /build/sources
find /app -type f -cnewer /build/before -exec chmod a+rX,go-w {} +

# Layers hold what a stage added, so that images share those they have in common.
first=
[ -e /build/installed ] || first=yes
touch /build/installed
mkdir /out
cd /
if [ -n "$first" ]; then
  cp -a app /out/
else
  find app \( -type f -o -type l \) -cnewer /build/before -print0 \
    | tar --create --null --files-from=- | tar --extract --directory /out
fi
find /out -type d -exec chmod 0755 {} +
find /out -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
