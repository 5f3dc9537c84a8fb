#!/bin/bash
# Makes the Docker images that the tests start from, without any registry:
#
#   debian:bookworm-slim         a minimal Debian, under the name that a
#                                Dockerfile would ask a registry for
#   skep-test/servers:bookworm   the same with the servers that skep runs:
#                                uvicorn, gunicorn, hypercorn, node, java; and
#                                the inits that it is compared with
#   skep-test/postgres:bookworm  the same with PostgreSQL, server and client, for
#                                what is migrated before the start
#
# Packages come from the mirror that this machine's own apt uses. An image that
# is up to date is left alone; a debian:bookworm-slim that somebody pulled is
# never touched.
#
#   images.sh           make what is missing
#   images.sh postgres  only that one; likewise base and servers
#   images.sh clean     remove what this script and the tests made
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

suite=bookworm
base=debian:bookworm-slim
servers=skep-test/servers:bookworm
packages=(
	gunicorn uvicorn
	python3-fastapi python3-httptools python3-hypercorn python3-uvicorn python3-uvloop
	nodejs
	default-jre-headless
	tini dumb-init catatonit
)
postgres=skep-test/postgres:bookworm
postgres_packages=(postgresql)
# The images carry this label; its value is the hash of all that decides what
# is in them: another recipe makes new images.
label=skep.test.image

fail() {
	echo "images: $*" >&2
	exit 1
}

bootstrap() {
	rm -rf --one-file-system "$root"
	debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror"
}

# A namespace of its own: /proc is seen only inside, and whatever a package
# starts is gone when apt-get is.
inside() {
	unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" \
		chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
}

# import IMAGE: the tree as one layer. An imported image has no environment, so
# PATH is said here as official images say it.
import() {
	local old
	old=$(docker images -q --no-trunc --filter "label=$label" "$1")
	tar -C "$root" --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' \
		--exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
		-c . |
		docker import \
			-c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
			-c 'CMD ["bash"]' \
			-c "LABEL $label=$version" \
			- "$1" >/dev/null
	[[ -z "$old" ]] || docker rmi "$old" >/dev/null 2>&1 || true # in use: stays until clean
	echo "images: made $1 (${SECONDS} s)"
}

# choose NAME: what import and has are about from here on.
choose() {
	case $1 in
	base | servers) chosen=("${packages[@]}") ;;
	postgres) chosen=("${postgres_packages[@]}") ;;
	*) fail "knows no image \"$1\", only base, servers and postgres" ;;
	esac
	image=${!1}
	version=$({ declare -f bootstrap inside import; echo "$suite ${chosen[*]}"; } | sha256sum | cut -c1-16)
}

# has IMAGE: does the engine have it in this script's version?
has() {
	[[ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null)" == "$version" ]]
}

# foreign IMAGE: is there one that this script did not make?
foreign() {
	local made
	made=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null) && [[ -z "$made" ]]
}

command -v docker >/dev/null || fail "needs docker: run make deps"
docker version >/dev/null 2>&1 || fail "the Docker engine does not answer: start it first (service docker start)"

if [[ "${1-}" == clean ]]; then
	docker service ls -q --filter label=skep.test 2>/dev/null | xargs -r docker service rm >/dev/null
	docker ps -aq --filter label=skep.test | xargs -r docker rm -f >/dev/null
	docker network ls -q --filter label=skep.test | xargs -r docker network rm >/dev/null
	docker volume ls -q --filter label=skep.test | xargs -r docker volume rm >/dev/null
	docker images -q --filter label=skep.test | sort -u | xargs -r docker rmi -f >/dev/null
	docker images -q --filter "label=$label" | sort -u | xargs -r docker rmi -f >/dev/null
	echo "images: removed every container, network and image with the label skep.test or $label"
	exit 0
fi

# Two runs at once would do the work twice.
exec 9>"${TMPDIR:-/tmp}/skep-images.lock"
flock 9

wanted=("$@")
[[ $# -gt 0 ]] || wanted=(base servers postgres)
missing=()
for name in "${wanted[@]}"; do
	choose "$name"
	if ! has "$image" && ! { [[ $name == base ]] && foreign "$base"; }; then
		missing+=("$name")
	fi
done
if [[ ${#missing[@]} -eq 0 ]]; then
	echo "images: up to date"
	exit 0
fi
[[ $(id -u) -eq 0 ]] || fail "needs root for debootstrap: run sudo make images"
command -v debootstrap >/dev/null || fail "needs debootstrap: run make deps"

mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Identifier: Packages' |
	awk -v suite="$suite" '$1 == suite && $2 == "main" { print $3; exit }')
if [[ -z "$mirror" ]]; then # a machine with another release: the same mirror has this one too
	mirror=$(apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Identifier: Packages' |
		awk '$1 == "main" && $2 !~ /security/ { print $2; exit }')
fi
[[ -n "$mirror" ]] || fail "found no Debian mirror in this machine's apt sources"

work=$(mktemp -d "${TMPDIR:-/tmp}/skep-images.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root

# run LOG COMMAND...: up to three tries, since a mirror can fail for a moment;
# the log is shown only when all failed.
run() {
	local log=$1 n
	shift
	for n in 1 2 3; do
		"$@" >"$log" 2>&1 </dev/null && return 0
		echo "images: try $n of 3 failed: $*" >&2
	done
	tail -n 30 "$log" >&2
	return 1
}

SECONDS=0
echo "images: making $suite from this machine's apt mirror"
run "$work/debootstrap.log" bootstrap
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no service starts in there
chmod +x "$root/usr/sbin/policy-rc.d"
mv "$root" "$work/plain"
for name in "${missing[@]}"; do
	choose "$name"
	rm -rf --one-file-system "$root"
	cp -a "$work/plain" "$root"
	if [[ $name == postgres ]]; then
		# Its package would make a database in the image: tests make their own.
		mkdir "$root/etc/postgresql-common"
		echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
	fi
	if [[ $name != base ]]; then
		run "$work/install.log" inside apt-get install -y --no-install-recommends \
			-o Acquire::Retries=3 -o Dpkg::Options::=--force-confold "${chosen[@]}"
	fi
	import "$image"
done
