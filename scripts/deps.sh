#!/bin/bash
# Installs what the tests need beside Go: real inits to compare with, a load
# generator, tracers, an emulator, the Docker engine and the means to make its base images.
# Quick and silent about what is already there.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# program that shows the package is there = Debian package that brings it
needs=(
	capsh=libcap2-bin
	catatonit=catatonit
	debootstrap=debootstrap
	dockerd=docker.io
	docker=docker.io
	dumb-init=dumb-init
	gcc=gcc
	ip=iproute2
	java=default-jre-headless
	make=make
	node=nodejs
	podman=podman
	ps=procps
	python3=python3
	qemu-system-x86_64=qemu-system-x86
	runc=runc
	strace=strace
	puma=puma
	tini=tini
	unshare=util-linux
	wrk=wrk
)

missing=()
for need in "${needs[@]}"; do
	if ! command -v "${need%%=*}" >/dev/null && [[ " ${missing[*]-} " != *" ${need#*=} "* ]]; then
		missing+=("${need#*=}")
	fi
done
# A module is no program. The tests ask Debian's own Python.
for need in yaml=python3-yaml uvicorn=python3-uvicorn fastapi=python3-fastapi gunicorn=gunicorn hypercorn=python3-hypercorn \
	twisted.web=python3-twisted systemd.daemon=python3-systemd; do
	/usr/bin/python3 -c "import ${need%%=*}" 2>/dev/null || missing+=("${need#*=}")
done
/usr/bin/ruby -e 'require "webrick"' 2>/dev/null || missing+=(ruby-webrick)
[[ -e /usr/share/java/netty-transport.jar ]] || missing+=(libnetty-java)
# A compiler without the C library's headers compiles nothing.
[[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
if [[ ${#missing[@]} -eq 0 ]]; then
	echo "deps: all there"
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: cannot install ${missing[*]}: no apt-get here, install them with this system's own packages" >&2
	exit 1
fi
if [[ $(id -u) -ne 0 ]]; then
	echo "deps: cannot install ${missing[*]}: not root, run: sudo make deps" >&2
	exit 1
fi

# A mirror can fail for a moment: every step is tried three times.
try() {
	local n
	for n in 1 2 3; do
		"$@" && return 0
		echo "deps: try $n of 3 failed: $*" >&2
	done
	return 1
}

export DEBIAN_FRONTEND=noninteractive
echo "deps: installing ${missing[*]}"
try apt-get update -qq
try apt-get install -y -qq --no-install-recommends -o Acquire::Retries=3 "${missing[@]}" >/dev/null
echo "deps: installed ${missing[*]}"
