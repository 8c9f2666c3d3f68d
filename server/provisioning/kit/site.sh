#!/bin/sh
# @SITE@: one command for everything, with Docker or, where there is none (or PLAIN=1), with plain Python.
#
#   ./site.sh key        makes this site's key, here; prints what to read out to the study operator
#   ./site.sh check      reads the images, tries the connection, says what to mend
#   ./site.sh up         starts gateway and trainer (with plain Python: until Ctrl-C)
#   ./site.sh status     what this site is doing, and what has left it
#   ./site.sh pending, approve STUDY, audit, logs, down
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p state link weights

plain=${PLAIN:-}
command -v docker >/dev/null 2>&1 || plain=1

# The first path under `data:` in site.yaml; of a file, its folder.
images() {
    path=$(sed -n 's/^ *\(root\|images\|labels\|metadata\|ground_truth\|split_file\): *"\{0,1\}\(\/[^"#]*[^"# ]\).*/\2/p' site.yaml | head -n 1)
    [ -n "$path" ] || { echo "site.yaml names no folder of images that begins with /" >&2; exit 1; }
    [ -e "$path" ] || { echo "$path, the folder of images in site.yaml, is not there" >&2; exit 1; }
    if [ -d "$path" ]; then echo "$path"; else dirname "$path"; fi
}

# What docker-compose.yml needs to know. As root, the containers run as a user without rights of their own.
write_env() {
    folder=$(images)
    user=$(id -u):$(id -g)
    if [ "$(id -u)" = 0 ]; then
        user=10001:10001
        chown -R "$user" state link weights
        for file in site.key site.yaml gateway.yaml ca.pem; do
            if [ -e "$file" ]; then chown "$user" "$file"; fi
        done
    fi
    files=docker-compose.yml
    if grep -q '^device: *cuda' site.yaml; then files=docker-compose.yml:docker-compose.gpu.yml; fi
    printf "SITE_USER=%s\nIMAGES='%s'\nCOMPOSE_FILE=%s\n" "$user" "$folder" "$files" >.env
}

# The key has to be made before any folder of images is known.
key_in_docker() {
    docker run --rm --network none --user "$(id -u):$(id -g)" --read-only --cap-drop ALL \
        --volume "$PWD:/site" "consilium-gateway:@VERSION@" key /site "$@"
}

trainer() { if [ -n "$plain" ]; then consilium-site "$@"; else write_env; docker compose run --rm -T trainer "$@"; fi; }
settings() { if [ -n "$plain" ]; then echo site.yaml; else echo /site/site.yaml; fi; }

what=${1:-help}
[ $# -eq 0 ] || shift
case $what in
key) if [ -n "$plain" ]; then consilium-site key . "$@"; else key_in_docker "$@"; fi ;;
check)
    failed=0
    if [ -n "$plain" ]; then
        consilium-site check-connection . || failed=1
    else
        write_env
        docker compose run --rm -T gateway check-connection /site/gateway.yaml || failed=1
    fi
    trainer check "$(settings)" "$@" || failed=1
    exit $failed
    ;;
up)
    if [ -z "$plain" ]; then write_env; exec docker compose up -d "$@"; fi
    consilium-site trainer site.yaml & trainer=$!
    consilium-site gateway . & gateway=$!
    trap 'kill $trainer $gateway 2>/dev/null || true; wait' EXIT
    trap 'exit 0' INT TERM HUP
    while kill -0 $trainer 2>/dev/null && kill -0 $gateway 2>/dev/null; do sleep 2 & wait $!; done
    echo "the trainer or the gateway has ended; see above" >&2
    exit 1
    ;;
down) exec docker compose down "$@" ;;
logs) exec docker compose logs "$@" ;;
status | pending | audit) trainer "$what" "$(settings)" "$@" ;;
approve) trainer approve "$(settings)" "$@" ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
