# shellcheck shell=bash
# What the test servers and tests/run share. Sourced, never run.

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# apt_install PACKAGE…: installs Debian packages, as root or through sudo.
apt_install() {
    local log
    command -v apt-get >/dev/null || die "$* missing, and no apt-get to install it with"
    ((EUID == 0)) || command -v sudo >/dev/null || die "$* missing, and no sudo: as root, apt-get install $*"
    echo "installing $*" >&2
    log=$(mktemp)
    # A fresh machine has no package lists. Old lists may do when they cannot be updated.
    as_root apt-get update >"$log" 2>&1 || true
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        install -y --no-install-recommends "$@" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get cannot install $*, see above"
    fi
    rm -f "$log"
}

# listens PORT [ADDRESS]: whether somebody listens on PORT of the address, else of 127.0.0.1.
listens() {
    (exec 3<>"/dev/tcp/${2-127.0.0.1}/$1") 2>/dev/null
}

# A port of 127.0.0.1 that nobody listens on, below those the kernel gives to outgoing connections.
free_port() {
    local port=$((20000 + RANDOM % 12000))
    while listens "$port"; do
        port=$((20000 + RANDOM % 12000))
    done
    echo "$port"
}

# spawn PIDFILE LOG NAME=VALUE… COMMAND…: starts COMMAND in the background, in the folder of PIDFILE, with
# this environment and nothing else of the caller's. It gets a session of its own, so that a Ctrl-C
# reaches only whoever started it, who then stops it in good order.
spawn() {
    local pidfile=$1 log=$2 dir=${1%/*}
    shift 2
    setsid env --ignore-environment --chdir="$dir" PATH="$PATH" LANG=C.UTF-8 TSS_SERVER_DIR="$dir" "$@" \
        </dev/null >>"$log" 2>&1 &
    echo $! >"$pidfile"
}

# gone PID: whether the process has ended, down to its last thread. A zombie has: nobody may reap it in a
# container.
gone() {
    local stat threads=("/proc/$1/task/"*)
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    [[ ${stat##*) } == Z* && ${#threads[@]} -le 1 ]]
}

# running PIDFILE: whether the process that spawn started has not ended. Its number may belong to another
# by now, which lacks the variable. One that is about to end has no environment any more: it is waited for.
running() {
    local pid environ
    pid=$(cat "$1") || return 1
    for _ in {1..50}; do
        gone "$pid" && return 1
        [[ -O /proc/$pid ]] || return 1
        environ=$(tr '\0' '\n' <"/proc/$pid/environ") || true
        [[ -z $environ ]] || break
        sleep 0.1
    done
    [[ $'\n'$environ$'\n' == *$'\n'"TSS_SERVER_DIR=${1%/*}"$'\n'* ]]
} 2>/dev/null

# await PIDFILE SECONDS COMMAND…: until COMMAND succeeds; fails when the process ends or time runs out.
# Only for a process that this script itself started.
await() {
    local pid deadline=$((SECONDS + $2))
    pid=$(cat "$1")
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# end PIDFILE [SIGNAL]: ends the process and waits until it is gone; by force when that takes more than 30 s.
end() {
    local pid deadline=$((SECONDS + 30))
    if running "$1"; then
        pid=$(cat "$1")
        kill "-${2-TERM}" "$pid" 2>/dev/null || true
        until gone "$pid"; do
            if ((SECONDS >= deadline)); then
                echo "${0##*/}: $pid (${1##*/}) does not end, killing it" >&2
                kill -KILL "$pid" 2>/dev/null || true
                deadline=$((SECONDS + 30))
            fi
            sleep 0.1
        done
    fi
    rm -f "$1"
}
