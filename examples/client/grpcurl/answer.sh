#!/usr/bin/env bash
# Asks a generator with grpcurl, which learns the contract by reflection: answer.sh ADDRESS MODEL
# TUNETRIAL_TOKEN holds a bearer token where the generator wants one; TUNETRIAL_CA, the CA of its certificate, turns TLS on.
set -euo pipefail
address=$1 model=$2
grpcurl=${GRPCURL:-grpcurl}
security=(-plaintext)
if [ -n "${TUNETRIAL_CA:-}" ]; then
  security=(-cacert "$TUNETRIAL_CA")
elif [ -n "${TUNETRIAL_TOKEN:-}" ] && [[ ! $address =~ ^(localhost|127\.0\.0\.1): ]]; then
  echo "a token goes to $address with TLS only: set TUNETRIAL_CA" >&2
  exit 2
fi
# grpcurl puts the token in itself (-expand-headers): on the command line every user of this machine could read it.
if [ -n "${TUNETRIAL_TOKEN:-}" ]; then
  export TUNETRIAL_TOKEN
  security+=(-expand-headers -H 'authorization: Bearer ${TUNETRIAL_TOKEN}')
fi

# `-d @` reads the request from standard input.
"$grpcurl" "${security[@]}" -max-time 60 -d @ "$address" tunetrial.generator.v1.GeneratorService/Answer <<EOF
{
  "model": "$model",
  "question": "Where was Lomira born?",
  "passages": {
    "passages": [
      {"id": "d#1", "text": "Bakodu was born in Tazopi."},
      {"id": "d#2", "text": "Lomira was born in Revuna."}
    ]
  },
  "decoding": {"max_tokens": 24}
}
EOF
