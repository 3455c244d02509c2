#!/bin/sh
# Installs or removes the daemon: `make install`, `make uninstall`. Read from the environment:
#   PREFIX        where the program goes: /opt/reclass-plex
#   DESTDIR       install below this folder instead, for a package or a test: nothing outside of it
#                 is touched, no user is made and systemd is left alone
#   PYTHON        the Python of the virtual environment, 3.10 or later: python3
#   TORCH         what pip shall install as torch: a wheel, or "cpu". By default a torch with CUDA
#                 that PYTHON already has is used, else that of systemd/requirements-torch.txt
#   LOCK          the file that pins every package but torch by version and hash, so that nothing
#                 else is installed: systemd/requirements.txt. "skip" takes what pip finds
#   PIP_ARGS      more for pip, for instance numpy<2; that is not in the lock, so LOCK=skip
#   SERVICE_USER  the user that the daemon runs as, if not one of its own: reclass-plex
#   INSTALL_VENV  "skip" leaves the virtual environment out
#   PURGE         1: uninstall removes the configuration, the database and the user too
set -eu
umask 022

PREFIX=${PREFIX:-/opt/reclass-plex}
DESTDIR=${DESTDIR:-}
PYTHON=${PYTHON:-python3}
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
LOCK=${LOCK:-$SOURCE/systemd/requirements.txt}
TORCH_LOCK=$SOURCE/systemd/requirements-torch.txt

ETC=$DESTDIR/etc/reclass-plex
UNITS=$DESTDIR/etc/systemd/system
DROP_INS=$UNITS/reclass-plex.service.d
SYSUSERS=$DESTDIR/etc/sysusers.d
BIN=$DESTDIR/usr/local/bin
HOME_DIR=$DESTDIR$PREFIX
VENV=$HOME_DIR/venv
MARK=$VENV/.reclass-plex # tells our virtual environment from anything else of that name
STATE=/var/lib/reclass-plex
CACHE=/var/cache/reclass-plex

say() { printf '%s\n' "$*"; }
fail() {
    printf 'reclass-plex: %s\n' "$*" >&2
    exit 1
}

check_arguments() {
    case $PREFIX in
    /*) ;;
    *) fail "PREFIX=$PREFIX must be a full path" ;;
    esac
    case $PREFIX in
    *[!A-Za-z0-9/._+-]*) fail "PREFIX=$PREFIX may hold only letters, digits, and / . _ + -" ;;
    esac
    case $DESTDIR in
    '' | /*) ;;
    *) fail "DESTDIR=$DESTDIR must be a full path" ;;
    esac
    case ${SERVICE_USER:-} in
    root) fail "SERVICE_USER=root: the daemon decodes strange files and never runs as root" ;;
    *[!A-Za-z0-9._-]*) fail "SERVICE_USER=$SERVICE_USER is no user name" ;;
    esac
    [ -n "$DESTDIR" ] && return
    [ "$(id -u)" = 0 ] || fail "must be run by root: sudo make $1 (or set DESTDIR)"
    if [ "$1" = install ] && [ -n "${SERVICE_USER:-}" ] && [ "$SERVICE_USER" != reclass-plex ]; then
        id "$SERVICE_USER" >/dev/null 2>&1 || fail "SERVICE_USER=$SERVICE_USER: there is no such user"
    fi
}

# Whether this is the machine's own systemd's business.
has_systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

# Copies a file, with our PREFIX in place of the usual one.
put() {
    mkdir -p "$(dirname "$2")"
    sed "s|/opt/reclass-plex|$PREFIX|g" "$SOURCE/$1" >"$2.new"
    chmod "$3" "$2.new"
    mv -f "$2.new" "$2"
}

make_venv() {
    if [ -e "$VENV" ] && [ ! -e "$MARK" ]; then
        fail "$VENV exists and is not ours; move it away or set PREFIX"
    fi
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "PYTHON=$PYTHON must be Python 3.10 or later"
    case $("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))') in
    /home/* | /root/* | /tmp/*) fail "PYTHON=$PYTHON lies in a home, which the service does not see;" \
        "try PYTHON=/usr/bin/python3" ;;
    esac
    choose_torch
    if [ ! -e "$MARK" ]; then
        mkdir -p "$HOME_DIR"
        # shellcheck disable=SC2086 # no word or one
        "$PYTHON" -m venv $system_packages "$VENV" || {
            rm -rf "$VENV"
            fail "no virtual environment: on Debian and Ubuntu, apt install python3-venv"
        }
        : >"$MARK"
    fi
    if [ "$torch" = locked ]; then
        install_locked_torch
    elif [ -n "$torch" ]; then
        # shellcheck disable=SC2086 # PIP_ARGS and the constraints are several words
        pip_install $constraints "$torch" ${PIP_ARGS:-}
    fi
    # From a copy: a build in the source would leave folders that belong to root there.
    copy=$(mktemp -d)
    (cd "$SOURCE" && cp -R pyproject.toml README.md LICENSE reclass_plex service "$copy/")
    if [ "$LOCK" = skip ] || [ -n "${PIP_ARGS:-}" ]; then
        say "LOCK=skip or PIP_ARGS: packages are installed as pip finds them, not by hash"
        # Pinned: where that torch does not suit, pip shall say so, not put one without CUDA in its
        # place.
        "$VENV/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' \
            >"$copy/torch.txt"
        # shellcheck disable=SC2086
        pip_install -c "$copy/torch.txt" "$copy" ${PIP_ARGS:-}
    else
        install_locked "$copy"
    fi
    "$VENV/bin/python" -I "$SOURCE/systemd/sbom.py" "$HOME_DIR/sbom.json" # what is there now
    if [ -n "$DESTDIR" ]; then relocate; fi
    "$VENV/bin/python" -I - <<'END' || fail "torch does not work; see docs/jetson.md or docs/rtx.md"
import torch
torch.zeros(1).numpy()
cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA: the CPU does the work"
print(f"torch {torch.__version__}: {cuda}")
END
}

# Installs what the lock names, and nothing else: the package itself is built with its setuptools.
install_locked() {
    pip_install --require-hashes --no-deps -r "$LOCK"
    pip_install --no-deps --no-build-isolation "$1"
}

# The torch with CUDA and its parts, by hash as well; what else it needs is in the other lock.
install_locked_torch() {
    pip_install --require-hashes --no-deps -r "$TORCH_LOCK"
}

pip_install() { (cd "$SOURCE" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"); }

# Decides which torch: sets `torch` (what pip installs before the rest, if anything), `constraints`
# and `system_packages`.
choose_torch() {
    torch=
    constraints=
    system_packages=
    machine=$(uname -m)
    # -s: not one in root's home, which the service does not see.
    has_cuda='import sys, torch; sys.exit(torch.version.cuda is None)'
    if [ -n "${TORCH:-}" ] && [ "$TORCH" != cpu ]; then
        torch=$TORCH
    elif [ -e "$MARK" ] && "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
        return # an upgrade keeps what works
    elif [ -z "${TORCH:-}" ] && "$PYTHON" -s -c "$has_cuda" 2>/dev/null; then
        say "using the torch with CUDA of $PYTHON"
        system_packages=--system-site-packages
    elif [ -z "${TORCH:-}" ] && [ -e /etc/nv_tegra_release ]; then
        fail "this is a Jetson, and $PYTHON has no torch with CUDA: give NVIDIA's wheel for your" \
            "JetPack as TORCH=/path/to/torch-....whl (docs/jetson.md), or TORCH=cpu"
    elif [ "$machine" = x86_64 ] && { [ "${TORCH:-}" = cpu ] || ! command -v nvidia-smi >/dev/null 2>&1; }; then
        torch=torch
        constraints="-c constraints-cpu.txt"
    elif [ "$LOCK" = skip ] || [ -n "${PIP_ARGS:-}" ]; then
        torch=torch
    else
        torch=locked
    fi
}

# The environment was made below DESTDIR, but will be used without it: so its scripts say.
relocate() {
    "$VENV/bin/python" -I - "$DESTDIR$PREFIX" "$PREFIX" "$VENV" <<'END'
import os, pathlib, sys
made, used, venv = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), pathlib.Path(sys.argv[3])
for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir()]:
    if path.is_symlink() or not path.is_file():
        continue
    data = path.read_bytes()
    if made in data and b"\0" not in data:
        mode = path.stat().st_mode
        path.write_bytes(data.replace(made, used))
        path.chmod(mode)
END
}

link_command() {
    target=$PREFIX/venv/bin/$1
    mkdir -p "$BIN"
    if [ -e "$BIN/$1" ] || [ -L "$BIN/$1" ]; then
        is_our_link "$1" || fail "$BIN/$1 exists and is not ours; move it away"
    fi
    ln -sfn "$target" "$BIN/$1"
}

is_our_link() {
    [ -L "$BIN/$1" ] && [ "$(readlink "$BIN/$1")" = "$PREFIX/venv/bin/$1" ]
}

put_config() {
    mkdir -p "$ETC"
    if [ ! -e "$ETC/config.yaml" ]; then
        # The store's place is named, so that the command finds the daemon's, whoever calls it.
        sed "/^store:/,/^[a-z]/ s|^  path: null\$|  path: $STATE/store.sqlite|" \
            "$SOURCE/config.example.yaml" >"$ETC/config.yaml.new"
        chmod 640 "$ETC/config.yaml.new"
        mv "$ETC/config.yaml.new" "$ETC/config.yaml"
        if [ -z "$DESTDIR" ]; then chgrp reclass-plex "$ETC/config.yaml"; fi
    fi
    chmod 750 "$ETC"
    if [ -z "$DESTDIR" ]; then chgrp reclass-plex "$ETC"; fi
}

put_user() {
    if [ "${SERVICE_USER:-}" = reclass-plex ]; then
        rm -f "$DROP_INS/20-user.conf"
    elif [ -n "${SERVICE_USER:-}" ]; then
        put systemd/user.conf "$DROP_INS/20-user.conf" 644
        sed "s|@USER@|$SERVICE_USER|" "$DROP_INS/20-user.conf" >"$DROP_INS/20-user.conf.new"
        mv "$DROP_INS/20-user.conf.new" "$DROP_INS/20-user.conf"
    fi # else an upgrade keeps the user that was chosen
}

install_all() {
    check_arguments install
    was_running=
    copy=
    trap clean_up EXIT
    if has_systemd; then
        case $(systemctl is-active reclass-plex.service || true) in
        inactive | failed | unknown) ;;
        *) # also one that waits to be restarted
            was_running=yes
            systemctl stop reclass-plex.service # its program is about to be replaced
            ;;
        esac
    fi
    if [ "${INSTALL_VENV:-}" != skip ]; then make_venv; fi
    put systemd/prepare.py "$HOME_DIR/prepare.py" 644
    put config.example.yaml "$HOME_DIR/config.example.yaml" 644
    put systemd/sysusers.conf "$SYSUSERS/reclass-plex.conf" 644
    if [ -z "$DESTDIR" ]; then systemd-sysusers "$SYSUSERS/reclass-plex.conf"; fi
    put_config
    put systemd/reclass-plex.service "$UNITS/reclass-plex.service" 644
    put systemd/reclass-plex-prepare.service "$UNITS/reclass-plex-prepare.service" 644
    put_user
    link_command reclass-plex
    link_command reclass-plexd
    if has_systemd; then systemctl daemon-reload; fi
    if [ -n "$was_running" ]; then
        was_running=
        systemctl start reclass-plex.service
        say "reclass-plex is upgraded and runs again"
    elif [ -z "$DESTDIR" ]; then
        say "reclass-plex is installed. Now:"
        say "  sudo reclass-plex init --config /etc/reclass-plex/config.yaml"
        say "  sudo systemctl enable --now reclass-plex"
    fi
}

# After a failure on the way, what ran before shall run again.
clean_up() {
    if [ -n "$copy" ]; then rm -rf "$copy"; fi
    if [ -n "$was_running" ]; then systemctl start reclass-plex.service; fi
}

uninstall_all() {
    check_arguments uninstall
    if has_systemd && [ -e "$UNITS/reclass-plex.service" ]; then
        systemctl --quiet disable --now reclass-plex.service
    fi
    rm -f "$UNITS/reclass-plex.service" "$UNITS/reclass-plex-prepare.service"
    rm -f "$DROP_INS/10-from-config.conf" "$DROP_INS/20-user.conf"
    remove_if_empty "$DROP_INS" # unless it holds changes of your own
    for command in reclass-plex reclass-plexd; do
        if is_our_link "$command"; then rm -f "$BIN/$command"; fi
    done
    if [ -e "$MARK" ]; then rm -rf "$VENV"; fi
    rm -f "$HOME_DIR/prepare.py" "$HOME_DIR/config.example.yaml" "$HOME_DIR/sbom.json"
    remove_if_empty "$HOME_DIR"
    if has_systemd; then
        systemctl daemon-reload
        systemctl --quiet reset-failed reclass-plex.service 2>/dev/null || true
    fi
    # The user owns what is kept, so it goes only with that.
    if [ "${PURGE:-}" = 1 ]; then
        rm -rf "$ETC" "$DESTDIR$STATE" "$DESTDIR$CACHE"
        rm -f "$SYSUSERS/reclass-plex.conf"
        if [ -z "$DESTDIR" ] && id reclass-plex >/dev/null 2>&1; then userdel reclass-plex; fi
        say "reclass-plex is removed, with its configuration and database"
        return
    fi
    rm -rf "$DESTDIR$CACHE"
    say "reclass-plex is removed. Kept, as far as they exist (PURGE=1 removes them too):"
    say "  $ETC (configuration, Plex token)"
    say "  $DESTDIR$STATE (database: what it takes to undo changes)"
    say "  $SYSUSERS/reclass-plex.conf (the user reclass-plex)"
}

remove_if_empty() {
    if [ -d "$1" ]; then rmdir "$1" 2>/dev/null || true; fi
}

case ${1:-} in
install) install_all ;;
uninstall) uninstall_all ;;
*) fail "usage: install.sh install|uninstall" ;;
esac
