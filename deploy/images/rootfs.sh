#!/bin/sh
# The root file system of an image: a binary, the shared libraries that it needs,
# certificates for the model hub, and an unprivileged user.
#   rootfs.sh BINARY DESTINATION
set -eu
[ $# -eq 2 ] || { echo "usage: $0 BINARY DESTINATION" >&2; exit 2; }
binary=$1 root=$2

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/tmp" "$root/data" "$root/cache" "$root/models"
cp "$binary" "$root/usr/bin/"
strip "$root/usr/bin/$(basename "$binary")"

# `ldd` says "name => path (address)", and the loader without an arrow. The GPU driver is
# the host's: it is the one library that may be missing here, and must not be packed.
libraries=$(ldd "$binary" | grep -v 'libcuda\.so' | sed -nE 's/^.*[[:space:]](\/[^ ]+) \(0x.*$/\1/p')
if ldd "$binary" | grep -v 'libcuda\.so' | grep 'not found'; then exit 1; fi
for library in $libraries; do
    folder=$(dirname "$library")
    mkdir -p "$root$folder"
    cp -L "$library" "$root$library"
    # NVIDIA's run-time compiler opens its other half by name.
    case $library in */libnvrtc.so.*) cp -L "$folder"/libnvrtc-builtins.so.*.* "$root$folder/" ;; esac
done

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'steer:x:65532:65532:steer:/:/sbin/nologin' >"$root/etc/passwd"
echo 'steer:x:65532:' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
# Volumes take over the owner of the folder that they are mounted on.
chown 65532:65532 "$root/data" "$root/cache"
chmod 1777 "$root/tmp"
find "$root" -exec touch -h -d @"${SOURCE_DATE_EPOCH:-0}" {} +
