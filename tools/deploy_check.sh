#!/usr/bin/env bash
# Check what is in deploy/ without a cluster: Dockerfile, compose file, manifests.
#
# Checkers, kubectl among them, come from deploy/requirements-check.lock into
# build/deploy-check, once per lock.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { # fail MESSAGE
  echo "interlock: $1" >&2
  exit 1
}

checkers=build/deploy-check
tools/venv.sh "$checkers" deploy/requirements-check.lock
export PATH=$PWD/$checkers/bin:$PATH
hadolint deploy/Dockerfile
.venv/bin/python tools/image_locks.py check
.venv/bin/python tools/parameters.py deploy/kubernetes/overlays/gke/parameters.env \
  || fail "set deploy/kubernetes/overlays/gke/parameters.env"

# Digests and "always pull" are of whoever releases: the overlay's `images` names what runs.
skipped=CKV_K8S_43,CKV_K8S_15
for overlay in dev gke; do
  rendered=build/deploy-check/$overlay.yaml
  kubectl kustomize "deploy/kubernetes/overlays/$overlay" >"$rendered"
  # Its exit code is 0 whatever it warns of. It knows no schemas of custom resources.
  said=$(kubernetes-validate -k 1.36 --strict "$rendered" 2>&1) || fail "$said"
  if warned=$(grep -v '^INFO' <<<"$said" | grep -vE "find schema for kind [A-Za-z]+ with api version (cert-manager\.io|cloud\.google\.com|external-secrets\.io|monitoring\.coreos\.com|networking\.gke\.io)/"); then
    fail "$warned"
  fi
  checkov --file "$rendered" --framework kubernetes --compact --quiet \
    --skip-download --skip-check "$skipped"
done

tools/venv.sh build/supply deploy/requirements-supply.lock
INTERLOCK_REQUIRE=kubectl,supply .venv/bin/pytest --quiet tests/deploy/test_manifests.py \
  tests/deploy/test_parameters.py tests/deploy/test_pod_security.py tests/deploy/test_supply.py
