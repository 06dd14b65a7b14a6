#!/bin/sh
# Shared libraries that the wheels expect from the system: installs them when root, says so when not.
set -eu
missing=""
have() { ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* /lib/*/"$1"* >/dev/null 2>&1; }
have libusb-1.0.so.0 || missing="$missing libusb-1.0-0"
have libGL.so.1 || missing="$missing libgl1"
have libgomp.so.1 || missing="$missing libgomp1"
have libglib-2.0.so.0 || missing="$missing libglib2.0-0"
have libX11.so.6 || missing="$missing libx11-6"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
else
    echo "faceline needs these system libraries:$missing" >&2
    echo "expected them installed; run: sudo apt-get install -y$missing" >&2
    exit 1
fi
