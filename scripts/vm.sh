#!/bin/bash
# Fetches the kernel that the tests boot in a virtual machine: Debian's for clouds,
# from this machine's own apt mirror, unpacked into build/vm and not installed.
# Quick and silent about what is already there.
set -euo pipefail

dir=$(cd "$(dirname "$0")/.." && pwd)/build/vm
if [[ -f $dir/vmlinuz ]]; then
	echo "vm: $(cat "$dir/version") is there"
	exit 0
fi
for program in apt-get apt-cache dpkg-deb; do
	if ! command -v "$program" >/dev/null; then
		echo "vm: cannot fetch a kernel: no $program here" >&2
		exit 1
	fi
done

work=$(mktemp -d "${TMPDIR:-/tmp}/skep-vm.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
cd "$work"
# linux-image-cloud-amd64 is empty and depends on the newest one.
newest() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'; }
package=$(newest)
if [[ -z $package && $(id -u) -eq 0 ]]; then # a fresh machine has no lists yet
	apt-get update -qq || true
	package=$(newest)
fi
if [[ -z $package ]]; then
	echo "vm: cannot find linux-image-cloud-amd64: is main of Debian in the apt sources, and apt-get update done?" >&2
	exit 1
fi
fetched=
for n in 1 2 3; do
	if apt-get download -qq "$package" >/dev/null 2>&1; then
		fetched=yes
		break
	fi
	echo "vm: try $n of 3 failed: apt-get download $package" >&2
done
[[ -n $fetched ]]
dpkg-deb -x ./*.deb root
mkdir -p "$dir"
echo "$package" >"$dir/version"
# Last, under its name at once: what is there is whole.
cp root/boot/vmlinuz-* "$dir/vmlinuz.new"
mv "$dir/vmlinuz.new" "$dir/vmlinuz"
echo "vm: fetched $package"
