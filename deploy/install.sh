#!/bin/sh
# Installs one Fogline process on this host as a systemd service: Raspberry Pi OS, JetPack, Debian, Ubuntu.
# Run it again to update, or after it was stopped halfway: what is done already is left as it is.
set -eu

usage() {
  cat <<'EOF'
usage: sudo sh install.sh --role ROLE [options]      install or update
       sudo sh install.sh --role ROLE --uninstall    remove; --purge removes settings, keys and data too

  --role ROLE         edge, fog, cloud or authority
  --token TOKEN       enrol with what `fogline ca token` printed; better: put it into $FOGLINE_JOIN_TOKEN, or give `-` and
                      its line on stdin, so that no list of processes shows it
  --name NAME         of this device (default: its host name)
  --host HOST         name or address that others dial this host at; fog and cloud; may be given again
  --fog HOST:PORT     of the fog node, or `discover`; edge
  --cloud HOST:PORT   of the cloud server; edge and fog
  --authority H:P     of the certificate service (default: the token's)
  --camera DEVICE     /dev/video0, or csi:0 for the board's own connector; edge
  --rtsp URL          of a network camera; edge
  --folder DIR        an annotated folder to upload; edge
  --source WHAT       checkout, wheel or package to install (default: the checkout that this script lies in)
  --python PROGRAM    Python 3.10 or newer (default: python3)
  --prefix DIR        of the programs (default: /opt/fogline)
  --torch WHAT        auto, none, or a version such as 2.5.1 (default: auto for edge and fog, else none)
  --metrics-port N    of /metrics and /healthz on this host's loopback (default: 9100); one for each role on a host
  --no-start          install, but do not start
EOF
}

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }
need() { if [ $# -lt 2 ] || [ -z "$2" ]; then die "$1 needs a value; see --help"; fi; }

ROLE='' TOKEN=${FOGLINE_JOIN_TOKEN:-} NAME='' HOSTS='' FOG='' CLOUD='' AUTHORITY='' CAMERA='' RTSP='' FOLDER=''
SOURCE='' PYTHON=python3 PREFIX=/opt/fogline TORCH='' METRICS=9100 START=yes UNINSTALL='' PURGE=''
while [ $# -gt 0 ]; do
  case $1 in
    --role) need "$@"; ROLE=$2; shift ;;
    --token) need "$@"; TOKEN=$2; shift ;;
    --name) need "$@"; NAME=$2; shift ;;
    --host) need "$@"; HOSTS="$HOSTS $2"; shift ;;
    --fog) need "$@"; FOG=$2; shift ;;
    --cloud) need "$@"; CLOUD=$2; shift ;;
    --authority) need "$@"; AUTHORITY=$2; shift ;;
    --camera) need "$@"; CAMERA=$2; shift ;;
    --rtsp) need "$@"; RTSP=$2; shift ;;
    --folder) need "$@"; FOLDER=$2; shift ;;
    --source) need "$@"; SOURCE=$2; shift ;;
    --python) need "$@"; PYTHON=$2; shift ;;
    --prefix) need "$@"; PREFIX=$2; shift ;;
    --torch) need "$@"; TORCH=$2; shift ;;
    --metrics-port) need "$@"; METRICS=$2; shift ;;
    --no-start) START='' ;;
    --uninstall) UNINSTALL=yes ;;
    --purge) PURGE=yes ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option $1; see --help" ;;
  esac
  shift
done

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
ETC=/etc/fogline
UNITS=/etc/systemd/system
case $ROLE in
  edge) PROGRAM=edge-agent ;;
  fog) PROGRAM=fog-node ;;
  cloud) PROGRAM=cloud-server ;;
  authority) PROGRAM=fogline ;;
  '') usage >&2; die "--role is missing" ;;
  *) die "--role $ROLE is none of edge, fog, cloud, authority" ;;
esac
[ "$(id -u)" -eq 0 ] || die "this needs root; run it with sudo"
case $PREFIX in /*) ;; *) die "--prefix $PREFIX must begin with a slash" ;; esac
UNIT=fogline-$ROLE.service
if [ "$ROLE" = authority ]; then
  ACCOUNT=fogline-authority STATE=/var/lib/fogline-authority
else
  ACCOUNT=fogline STATE=/var/lib/fogline/$ROLE
fi
TLS=$STATE/tls
CONFIG=$ETC/$ROLE.yaml
systemd_runs() { [ -d /run/systemd/system ]; }
as_account() { # COMMAND…: with the service's rights, not ours; the token in the environment, which others can't see
  HOME=$STATE FOGLINE_JOIN_TOKEN=${JOIN:-} \
    setpriv --reuid "$ACCOUNT" --regid "$ACCOUNT" --init-groups --no-new-privs "$@"
}
unset PYTHONPATH PYTHONHOME || true
umask 022 # whatever root's own is: programs and settings' folder are read by the service's account

if [ -n "$UNINSTALL" ]; then
  if systemd_runs; then
    systemctl disable --now "$UNIT" 2>/dev/null || true
  fi
  rm -f "$UNITS/$UNIT" "$UNITS/multi-user.target.wants/$UNIT"
  rm -rf "$UNITS/$UNIT.d/10-board.conf"
  rmdir "$UNITS/$UNIT.d" 2>/dev/null || true
  if systemd_runs; then systemctl daemon-reload; fi
  if [ -n "$PURGE" ]; then
    rm -rf "$STATE" "$CONFIG"
    rmdir "$ETC" /var/lib/fogline 2>/dev/null || true
  fi
  # Other roles on this host share programs and account.
  set -- "$UNITS"/fogline-*.service
  if [ ! -e "$1" ]; then
    # Only what this script made: a mistyped --prefix must not cost another folder.
    if [ -f "$PREFIX/.fogline" ]; then rm -rf "$PREFIX"; fi
    for account in fogline fogline-authority; do
      if [ -n "$PURGE" ] && id "$account" >/dev/null 2>&1; then userdel "$account" 2>/dev/null || true; fi
    done
  fi
  say "removed $UNIT$([ -n "$PURGE" ] || printf ' (%s stays: --purge removes settings, keys and data)' "$STATE")"
  exit 0
fi

# ---- what this host is -------------------------------------------------------------------------------------------
BOARD=''
if [ -r /proc/device-tree/model ]; then BOARD=$(tr -d '\0' </proc/device-tree/model); fi
JETSON=''
if [ -f /etc/nv_tegra_release ]; then JETSON=yes; fi
OLD_ARM='' # without atomic instructions (LSE): Raspberry Pi 4 and 3, Jetson Nano
if [ "$(uname -m)" = aarch64 ] && ! grep -qw atomics /proc/cpuinfo; then OLD_ARM=yes; fi
say "installing the role $ROLE on ${BOARD:-$(uname -m)}${JETSON:+ with JetPack}"

command -v "$PYTHON" >/dev/null || die "$PYTHON is not installed; apt install python3 python3-venv, or give --python"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || die "$PYTHON is older than 3.10; JetPack 6 and Raspberry Pi OS 12 have a newer one, else give --python"
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
  command -v apt-get >/dev/null || die "$PYTHON has no venv module; install it"
  say "installing python3-venv"
  apt-get install -y -q python3-venv >/dev/null
fi
if [ -z "$SOURCE" ]; then
  [ -f "$HERE/../pyproject.toml" ] || die "$HERE is in no checkout; give --source"
  SOURCE=$(CDPATH='' cd -- "$HERE/.." && pwd)
fi

# ---- account, programs --------------------------------------------------------------------------------------------
if ! id "$ACCOUNT" >/dev/null 2>&1; then
  useradd --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
fi
for group in video render; do
  if [ "$ROLE" != authority ] && getent group "$group" >/dev/null; then usermod -aG "$group" "$ACCOUNT"; fi
done
mkdir -p "$ETC"
if [ "$ROLE" != authority ]; then install -d -m 0755 /var/lib/fogline; fi
install -d -m 0700 -o "$ACCOUNT" -g "$ACCOUNT" "$STATE"

[ -n "$TORCH" ] || case $ROLE in edge | fog) TORCH=auto ;; *) TORCH=none ;; esac
SITE='' # NVIDIA's torch for Jetson comes as a package of the system's Python
if [ -n "$JETSON" ] && [ "$TORCH" = auto ] && "$PYTHON" -c 'import importlib.util, sys
sys.exit(importlib.util.find_spec("torch") is None)'; then SITE=--system-site-packages; fi
if [ ! -x "$PREFIX/bin/python" ] || ! "$PREFIX/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  say "making $PREFIX"
  # shellcheck disable=SC2086 # one option or none
  "$PYTHON" -m venv --clear $SITE "$PREFIX"
  : >"$PREFIX/.fogline"
elif [ -n "$SITE" ] && grep -q '^include-system-site-packages = false' "$PREFIX/pyvenv.cfg"; then
  say "making $PREFIX again, so that it finds NVIDIA's torch"
  "$PYTHON" -m venv --clear "$SITE" "$PREFIX"
  : >"$PREFIX/.fogline"
fi
pip() { "$PREFIX/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
EXTRA=''
if [ -n "$CAMERA$RTSP" ] || grep -qsE 'source: (camera|rtsp)' "$CONFIG"; then EXTRA='[camera]'; fi
say "installing fogline$EXTRA from $SOURCE"
if [ -d "$SOURCE" ]; then
  # From a copy: a build writes into its folder, which is not ours. The same version is installed anew, it may differ.
  COPY=$(mktemp -d)
  trap 'rm -rf "$COPY"' EXIT
  (cd "$SOURCE" && tar -cf - --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./fogline-run .) \
    | tar -xf - -C "$COPY"
  pip install -q "$COPY$EXTRA"
  pip install -q --no-deps --force-reinstall "$COPY"
else
  pip install -q --upgrade "$SOURCE$EXTRA"
fi

# ---- torch, which is only kept where it works ------------------------------------------------------------------------
# Some builds end in an illegal instruction on older cores. Tried in a child, with what decoding and training call first.
PROBE='import torch
x = torch.ones(1, 3, 32, 32, requires_grad=True)
y = torch.nn.functional.conv2d(x, torch.ones(4, 3, 3, 3)).sum() + (torch.ones(64, 64) @ torch.ones(64, 64)).sum()
y.backward()
assert x.grad is not None
print(torch.__version__, "cuda" if torch.cuda.is_available() else "cpu")'
try_torch() {
  CODE=0
  FOUND=$(timeout 300 "$PREFIX/bin/python" -c "$PROBE" 2>/dev/null) || CODE=$?
  return "$CODE"
}
TRAINS=auto
if [ "$TORCH" != none ]; then
  if "$PREFIX/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    say "torch is there already"
  elif [ -n "$JETSON" ] && [ "$TORCH" = auto ]; then
    # pip's own build has no CUDA for this GPU.
    warn "no torch of NVIDIA's here: https://docs.nvidia.com/deeplearning/frameworks/install-pytorch-jetson-platform"
    warn "install it, then run this again; until then this host neither decodes nor trains"
  else
    case $TORCH in
      auto)
        if [ -n "$OLD_ARM" ]; then SPEC='torch==2.5.1'; elif [ "$(uname -m)" = aarch64 ]; then SPEC='torch==2.6.0'
        else SPEC='torch>=2.4'; fi ;; # 2.6.0: the last for aarch64 that does not bring gigabytes of CUDA along
      *) SPEC="torch==$TORCH" ;;
    esac
    INDEX=''
    if [ "$(uname -m)" = x86_64 ] && [ ! -e /dev/nvidia0 ]; then
      INDEX='--index-url https://download.pytorch.org/whl/cpu'
    fi
    say "installing $SPEC, 100 MB or more"
    # shellcheck disable=SC2086 # words, or nothing
    pip install -q $INDEX "$SPEC" || warn "torch can't be installed; going on without"
  fi
  if "$PREFIX/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    if try_torch; then
      say "torch $FOUND works here"
      # Without torch's own requirements: what is there was just found to work.
      pip install -q 'safetensors>=0.4.3' 'zstandard>=0.22' || warn "safetensors and zstandard can't be installed"
    else
      if [ "$CODE" -gt 128 ]; then
        warn "torch dies by signal $((CODE - 128)) on this processor; going on without"
      else
        warn "torch does not work here (code $CODE); going on without"
      fi
      if [ -z "$SITE" ]; then pip uninstall -q -y torch; else TRAINS=false; fi
    fi
  fi
fi

# ---- certificate -----------------------------------------------------------------------------------------------------
[ -n "$NAME" ] || NAME=$(hostname | tr '[:upper:]' '[:lower:]')
if [ "$ROLE" = authority ]; then
  if [ ! -f "$STATE/ca.pem" ]; then as_account "$PREFIX/bin/fogline" ca init --dir "$STATE"; fi
else
  if [ "$TOKEN" = - ]; then IFS= read -r TOKEN || die "--token -: no line on stdin"; fi
  if [ -n "$TOKEN" ]; then
    set -- join --name "$NAME" --out "$TLS"
    for host in $HOSTS; do set -- "$@" --host "$host"; done
    JOIN=$TOKEN
    TOLD=$(as_account "$PREFIX/bin/fogline" "$@") || die "enrolment failed; the reason is above"
    say "$TOLD" | sed '/^point its/,$d'
    JOIN=''
    rest=${TOKEN#fogline-join:}
    # HOST may be an IPv6 address in brackets; two fields follow host and port.
    [ -n "$AUTHORITY" ] || AUTHORITY=${rest%:*:*}
  elif [ ! -f "$TLS/$NAME.pem" ]; then
    die "no certificate in $TLS and no --token; make one: fogline ca token --role $ROLE --name $NAME"
  fi
fi

# ---- settings ----------------------------------------------------------------------------------------------------------
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; }
write_config() {
  say "# Written by install.sh, once: yours to change. $PROGRAM --print-config explains every key."
  if [ "$ROLE" = edge ]; then say "name: $(quoted "$NAME")"; fi
  say "data_dir: $STATE/data"
  case $ROLE in
    edge) say "fog: $(quoted "$FOG")" ;;
    fog)
      say "listen: 0.0.0.0:7400"
      # shellcheck disable=SC2086 # a list of names
      set -- $HOSTS
      say "advertise: $(quoted "${1:-$NAME}:7400")" ;;
    cloud) say "listen: 0.0.0.0:7300" ;;
  esac
  if [ -n "$CLOUD" ] && [ "$ROLE" != cloud ]; then say "cloud: $(quoted "$CLOUD")"; fi
  say "tls:"
  say "  ca: $TLS/ca.pem"
  say "  cert: $(quoted "$TLS/$NAME.pem")"
  say "  key: $(quoted "$TLS/$NAME.key")"
  if [ -n "$AUTHORITY" ]; then say "  authority: $(quoted "$AUTHORITY")"; fi
  if [ -n "$CAMERA" ]; then
    say "capture: {source: camera, device: $(quoted "$CAMERA"), camera: $(quoted "$NAME"), fps: 5}"
  elif [ -n "$RTSP" ]; then
    say "capture: {source: rtsp, url: $(quoted "$RTSP"), camera: $(quoted "$NAME"), fps: 5}"
  elif [ -n "$FOLDER" ]; then
    say "capture: {source: folder, camera: $(quoted "$NAME"), runs: [{path: $(quoted "$FOLDER")}]}"
  fi
  if [ "$ROLE" = edge ]; then say "train: {enabled: $TRAINS}"; fi
  if [ "$ROLE" = fog ]; then say "encoder: {codec: avif2}"; fi
  say "metrics: {port: $METRICS}"
}
if [ "$ROLE" != authority ]; then
  if [ -e "$CONFIG" ]; then
    say "$CONFIG is there already, and stays as it is"
  else
    if [ "$ROLE" = edge ] && [ -z "$FOG" ]; then
      [ -n "$CLOUD" ] || die "--fog HOST:PORT is missing; or give --cloud, which knows the fog nodes"
      FOG=discover
    fi
    # May hold a camera's password: root and the service read it, nobody else.
    umask 027
    write_config >"$CONFIG.new"
    chown "root:$ACCOUNT" "$CONFIG.new"
    mv "$CONFIG.new" "$CONFIG"
    umask 022
    say "wrote $CONFIG"
  fi
  as_account "$PREFIX/bin/$PROGRAM" --print-config >/dev/null || die "$PREFIX/bin/$PROGRAM does not start"
fi

# ---- the service ---------------------------------------------------------------------------------------------------------
sed "s|/opt/fogline/|$PREFIX/|g" "$HERE/systemd/$UNIT" >"$UNITS/$UNIT.new"
chmod 0644 "$UNITS/$UNIT.new"
mv "$UNITS/$UNIT.new" "$UNITS/$UNIT"
if [ -n "$JETSON" ] && [ "$ROLE" != authority ]; then
  mkdir -p "$UNITS/$UNIT.d"
  cp "$HERE/systemd/jetson.conf" "$UNITS/$UNIT.d/10-board.conf"
fi
if ! systemd_runs; then
  say "installed $UNIT; systemd does not run here, so it was not started"
elif [ -z "$START" ]; then
  systemctl daemon-reload
  say "installed $UNIT; start it: systemctl enable --now $UNIT"
else
  systemctl daemon-reload
  systemctl enable -q "$UNIT"
  if ! systemctl restart "$UNIT"; then
    journalctl -u "$UNIT" -n 20 --no-pager >&2 || true
    die "$UNIT did not start; its last lines are above"
  fi
  say "$UNIT runs: $(systemctl show "$UNIT" -p StatusText --value)"
  say "follow it: journalctl -fu $UNIT"
fi
if [ "$ROLE" = authority ]; then
  say "let a device in: sudo -u $ACCOUNT $PREFIX/bin/fogline ca token --role edge --name cam-1 --dir $STATE"
fi
