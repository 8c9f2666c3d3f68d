#!/bin/sh
# @SITE@: one command for everything, with Docker or, where there is none (or PLAIN=1), with plain Python.
#
#   ./site.sh key        makes this site's key, here; prints what to read out to the study operator
#   ./site.sh check      reads the images, tries the connection, says what to mend
#   ./site.sh up         starts gateway and trainer (with plain Python: until Ctrl-C)
#   ./site.sh status     what this site is doing, and what has left it
#   ./site.sh users      without Docker, as root, once: two users, one for the gateway and one for the trainer
#   ./site.sh units      without Docker: what both systemd units need of site.yaml and gateway.yaml
#   ./site.sh console    pages for a browser on this machine: what is trained, what has left, studies to decide about
#   ./site.sh mask-key   this site's line of the roster for secure aggregation; with a roster, its fingerprint, too
#   ./site.sh pending, approve STUDY (or approve STUDY --refuse), audit, logs, down
set -eu
umask 077
unset CDPATH # a folder of the same name, elsewhere
cd -- "$(dirname -- "$0")"
mkdir -p state link weights

plain=${PLAIN:-}
command -v docker >/dev/null 2>&1 || plain=1

# What the trainer's container must see, and with which device. The program that reads site.yaml says so itself:
# this script reads nothing of it.
ask() {
    docker run --rm --interactive --network none --read-only --cap-drop ALL "consilium-trainer:@VERSION@" \
        mounts - --kit "$PWD" --site "@SITE@" <site.yaml >docker-compose.mounts.yml.new || return 1
    mv docker-compose.mounts.yml.new docker-compose.mounts.yml
    missing=$(sed -n 's/^# needs: //p' docker-compose.mounts.yml | while IFS= read -r path; do
        [ -e "$path" ] || printf '%s, which site.yaml names, is not there\n' "$path"
    done)
    [ -z "$missing" ] || { printf '%s\n' "$missing" >&2; return 1; }
}

# What docker-compose.yml needs to know. As root, the containers run as a user without rights of their own.
write_env() {
    user=$(id -u):$(id -g)
    if [ "$(id -u)" = 0 ]; then
        user=10001:10001
        chown -R "$user" state link weights
        for file in site.key site.yaml gateway.yaml ca.pem; do
            if [ -e "$file" ]; then chown "$user" "$file"; fi
        done
    fi
    files=docker-compose.yml answer=0
    if ask; then
        files=$files:docker-compose.mounts.yml
        case $(sed -n 's/^# device: //p' docker-compose.mounts.yml) in
        cuda*) files=$files:docker-compose.gpu.yml ;;
        esac
    else
        answer=1
    fi
    printf "SITE_USER=%s\nCOMPOSE_FILE=%s\n" "$user" "$files" >.env
    return $answer
}

# The key has to be made before any folder of images is known.
key_in_docker() {
    docker run --rm --network none --user "$(id -u):$(id -g)" --read-only --cap-drop ALL \
        --mount "type=bind,\"source=$(printf %s "$PWD" | sed 's/"/""/g')\",target=/site" "consilium-gateway:@VERSION@" key /site "$@"
}

# Without Docker the program has to be installed, and where the shell looks for it.
need_program() {
    if command -v consilium-site >/dev/null 2>&1; then return; fi
    echo "the program consilium-site is not found: install it as README.md says under \"Without Docker\", and name its" \
        "folder: export PATH=/opt/consilium/venv/bin:\$PATH" >&2
    exit 1
}

# What a container engine does for the kit, and nothing does without one.
only_with_docker() {
    [ -n "$plain" ] || return 0
    echo "without Docker there is no \`$what\`: $1" >&2
    exit 1
}

in_trainer() { docker compose run --rm -T trainer "$@"; }
trainer() { if [ -n "$plain" ]; then consilium-site "$@"; else write_env || exit 1; in_trainer "$@"; fi; }
settings() { if [ -n "$plain" ]; then echo site.yaml; else echo /site/site.yaml; fi; }

# The images come with the kit, in one file, if this machine does not have them yet.
need_images() {
    if docker image inspect consilium-gateway:@VERSION@ consilium-trainer:@VERSION@ >/dev/null 2>&1; then return; fi
    file=consilium-images-@VERSION@.tar.gz
    if [ ! -e "$file" ]; then
        echo "the images consilium-gateway:@VERSION@ and consilium-trainer:@VERSION@ are not on this machine, or Docker is not" \
            "running: put $file, which the operator gives you, beside site.sh. Without Docker: PLAIN=1 ./site.sh $what" >&2
        exit 1
    fi
    if [ ! -e images.sha256 ]; then
        echo "this kit has no images.sha256, so $file cannot be checked: ask the operator for the kit of" \
            "\`provision --with-images\`" >&2
        exit 1
    fi
    if ! sha256sum -c images.sha256; then
        echo "$file is damaged, or of another kit: it was not loaded. Copy it again, or ask the operator" >&2
        exit 1
    fi
    docker load --input "$file"
}

what=${1:-help}
[ $# -eq 0 ] || shift
case $what in
key | check | up | status | console | pending | approve | audit | mask-key)
    if [ -n "$plain" ]; then need_program; else need_images; fi
    ;;
units) need_program ;;
esac
case $what in
key) if [ -n "$plain" ]; then consilium-site key . "$@"; else key_in_docker "$@"; fi ;;
check)
    failed=0
    if [ -n "$plain" ]; then
        consilium-site check-connection . || failed=1
        consilium-site check site.yaml "$@" || failed=1
    else
        seen=1
        write_env || { failed=1; seen=; }
        docker compose run --rm -T gateway check-connection /site/gateway.yaml --through http://way-out:3128 || failed=1
        if [ -n "$seen" ]; then in_trainer check /site/site.yaml "$@" || failed=1; fi
    fi
    [ $failed = 0 ] || echo "@SITE@ may NOT take part yet: mend what STOPS THE STUDY above, and run this again" >&2
    exit $failed
    ;;
up)
    if [ -z "$plain" ]; then write_env || exit 1; exec docker compose up -d "$@"; fi
    echo "without Docker, gateway and trainer are one user here: who takes over the gateway can read the images" >&2
    consilium-site trainer site.yaml & trainer=$!
    consilium-site gateway . & gateway=$!
    trap 'kill $trainer $gateway 2>/dev/null || true; wait' EXIT
    trap 'exit 0' INT TERM HUP
    while kill -0 $trainer 2>/dev/null && kill -0 $gateway 2>/dev/null; do sleep 2 & wait $!; done
    echo "the trainer or the gateway has ended; see above" >&2
    exit 1
    ;;
down)
    only_with_docker "end \`up\` with Ctrl-C, or stop both units: systemctl stop consilium-trainer consilium-gateway"
    exec docker compose down "$@"
    ;;
logs)
    only_with_docker "\`up\` prints it, and of the units it is in: journalctl -u consilium-trainer -u consilium-gateway"
    exec docker compose logs "$@"
    ;;
users)
    [ "$(id -u)" = 0 ] || { echo "./site.sh users makes users: run it as root" >&2; exit 1; }
    getent group consilium-link >/dev/null || groupadd --system consilium-link
    for user in consilium-trainer consilium-gateway; do
        id "$user" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$user"
        usermod --append --groups consilium-link "$user"
    done
    [ -e site.key ] || { echo "run ./site.sh key first" >&2; exit 1; }
    chmod 711 . && chmod 644 ca.pem && chmod 640 gateway.yaml site.yaml && chmod 600 site.key
    chown root:consilium-link gateway.yaml && chown consilium-gateway: site.key && chown root:consilium-trainer site.yaml
    chown -R consilium-trainer: state weights && chmod 700 state weights
    chown consilium-trainer:consilium-link link && chmod 2750 link
    echo "gateway and trainer are two users now; the images must be readable for consilium-trainer and no other user"
    ;;
units)
    for unit in trainer gateway; do
        mkdir -p "consilium-$unit.service.d"
        consilium-site mounts site.yaml --kit "$PWD" --site "@SITE@" --form "$unit-unit" \
            >"consilium-$unit.service.d/site.conf" || exit 1
    done
    consilium-site egress . >consilium-gateway.service.d/egress.conf || exit 1
    echo "copy both units and both folders *.service.d to /etc/systemd/system, then systemctl daemon-reload"
    ;;
status | pending | audit | mask-key) trainer "$what" "$(settings)" "$@" ;;
console)
    if [ -n "$plain" ]; then exec consilium-site console site.yaml "$@"; fi
    mkdir -p state/approvals state/console
    : >>state/audit.jsonl # so that the container sees this file, and not the folder with the decoded images
    write_env || exit 1
    echo "the console is on http://127.0.0.1:8766/ until Ctrl-C; its token is in state/console/token"
    exec docker compose run --rm --service-ports console
    ;;
approve) trainer approve "$(settings)" "$@" ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
