#!/usr/bin/env bash
# Install what the tests of several hosts and of SLURM run on: Debian's packages, through apt-get, as root.
# Does nothing where it is all there; where it cannot install, says why and ends with 0: those tests are then skipped
# and say the same.
set -euo pipefail
packages=(slurm-wlm munge iproute2 openssh-server openssh-client pdsh)

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "tests of several hosts and of SLURM will be skipped: ${missing[*]} not installed, and this is no Debian" >&2
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "tests of several hosts and of SLURM will be skipped: they need root, and ${missing[*]} not installed" >&2
    exit 0
fi
echo "installing ${missing[*]} for the tests of several hosts and of SLURM"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# policy-rc.d: the packages' own daemons are not wanted, the tests start theirs
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f "$log" "$policy"' EXIT
fi
if ! { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt-get could not install ${missing[*]}; the last lines of it are above. Those tests will be skipped." >&2
fi
