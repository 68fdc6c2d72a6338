# shellcheck shell=bash
# What the test servers and tests/run share. Sourced, never run.

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# apt_install PACKAGE…: installs Debian packages, as root or through sudo.
apt_install() {
    local as_root=() log
    command -v apt-get >/dev/null || die "cannot install $*: there is no apt-get; install it by hand"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "cannot install $*: neither root nor sudo; run: apt-get install $*"
        as_root=(sudo)
    fi
    echo "installing $*" >&2
    log=$(mktemp)
    # The lists of a fresh machine are empty or old. An update that fails is no reason to give up yet.
    "${as_root[@]}" apt-get update >"$log" 2>&1 || true
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        install -y --no-install-recommends "$@" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "cannot install $*: apt-get failed, see above"
    fi
    rm -f "$log"
}

# listens PORT: whether somebody listens on 127.0.0.1:PORT.
listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
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

# Whether the process of PIDFILE is still the one that spawn started: its number may belong to another
# by now, and a zombie (nobody may reap it in a container) has no environment any more.
running() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    grep -qszxF "TSS_SERVER_DIR=${1%/*}" "/proc/$pid/environ"
}

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

# end PIDFILE: ends the process and waits for it; by force when it takes more than 30 s.
end() {
    local signal=TERM deadline=$((SECONDS + 30))
    while running "$1"; do
        if [[ -n $signal ]]; then
            kill "-$signal" "$(cat "$1")" 2>/dev/null || true
            signal=
        elif ((SECONDS >= deadline)); then
            echo "${0##*/}: ${1##*/} takes too long to end, killing it" >&2
            signal=KILL deadline=$((SECONDS + 30))
        fi
        sleep 0.1
    done
    rm -f "$1"
}
