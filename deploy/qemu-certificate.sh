#!/bin/sh
# Certificates for `capture = "mirror"` with QEMU on another host: one for each host, the agent's and QEMU's.
#     deploy/qemu-certificate.sh CADIR OUTDIR HOST...
# CADIR has, or gets, ca-cert.pem and ca-key.pem: a CA of its own, since whoever has a certificate of it may use QEMU's
# monitor. OUTDIR gets the files that QEMU looks for in the `dir` of tls-creds-x509, which are the agent's names as well.
# HOST: every DNS name or IP address by which the other one reaches this host.
set -eu
[ $# -ge 3 ] || { echo "usage: $0 CADIR OUTDIR HOST..." >&2; exit 2; }
ca=$1 out=$2
shift 2
names=
for host in "$@"; do
  case $host in
    *:*) names=$names,IP:$host ;;
    *[!0-9.]*) names=$names,DNS:$host ;;
    *) names=$names,IP:$host ;;
  esac
done
umask 077
mkdir -p "$ca" "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
if [ ! -e "$ca/ca-cert.pem" ]; then
  key "$ca/ca-key.pem"
  openssl req -x509 -new -sha256 -days 7300 -key "$ca/ca-key.pem" -subj "/CN=holdfast QEMU CA $(openssl rand -hex 4)" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign -out "$work/ca"
  mv "$work/ca" "$ca/ca-cert.pem"
fi
key "$work/key"
openssl req -new -key "$work/key" -subj "/CN=$1" -out "$work/request"
cat > "$work/extensions" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=${names#,}
authorityKeyIdentifier=keyid
END
openssl x509 -req -sha256 -days 3650 -in "$work/request" -CA "$ca/ca-cert.pem" -CAkey "$ca/ca-key.pem" \
  -set_serial "0x$(openssl rand -hex 16 | sed 's/^./4/')" -extfile "$work/extensions" -out "$work/certificate" 2>/dev/null
cp "$ca/ca-cert.pem" "$out/ca-cert.pem"
for end in server client; do
  cp "$work/key" "$out/$end-key.pem"
  cp "$work/certificate" "$out/$end-cert.pem"
done
echo "$out: ${names#,}"
