#!/bin/sh
# A certificate for a further process server of a site, or for one that gets another name.
#     deploy/server-certificate.sh SITEDIR OUTDIR HOST...
# SITEDIR has ca.crt and ca.key as `holdfast init` wrote them; OUTDIR gets server.crt and server.key. HOST: every DNS name
# or IP address that agents and operators connect to; *.NAME stands for one part.
set -eu
[ $# -ge 3 ] || { echo "usage: $0 SITEDIR OUTDIR HOST..." >&2; exit 2; }
site=$1 out=$2
shift 2
names=DNS:localhost,IP:127.0.0.1
for host in "$@"; do
  case $host in
    *[!0-9.]*) case $host in *:*) names=$names,IP:$host ;; *) names=$names,DNS:$host ;; esac ;;
    *) names=$names,IP:$host ;;
  esac
done
umask 077
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/key" 2>/dev/null
openssl req -new -key "$work/key" -subj "/CN=holdfast process server" -out "$work/request"
cat > "$work/extensions" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=$names
authorityKeyIdentifier=keyid
END
openssl x509 -req -sha256 -days 3650 -in "$work/request" -CA "$site/ca.crt" -CAkey "$site/ca.key" \
  -set_serial "0x$(openssl rand -hex 16 | sed 's/^./4/')" -extfile "$work/extensions" -out "$work/certificate" 2>/dev/null
mv "$work/key" "$out/server.key"
mv "$work/certificate" "$out/server.crt"
chmod 644 "$out/server.crt"
echo "$out/server.crt: $names"
