# Shell words the scripts of this folder share: source it, it runs nothing.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
target=${CARGO_TARGET_DIR:-target}
stages=()
# Tests that boot guests, for cargo nextest; .config/nextest.toml runs the same ones two at a time.
# shellcheck disable=SC2034
guests='(kind(test) & package(vm)) | (package(harness) & (test(/^pool::tests/) | binary(e2e) | binary(gate) | binary(bisect) | binary(hub) | binary(compound) | binary(replays) | binary(oracle_vm)))'

# fail WHAT HELP: one error, one way out.
fail() {
  printf 'error: %s\nhelp: %s\n' "$1" "$2" >&2
  exit 1
}

# build_hgm [release]: hgm into $target. In the dev profile as the tests have it: built alone, some
# crates get fewer features, and half the tree would be compiled once more.
build_hgm() {
  case ${1:-dev} in
    release) cargo build --locked --release --package harness ;;
    *) cargo build --locked --workspace --tests ;;
  esac
}

# stage NAME COMMAND...: runs it and says how long it took.
stage() {
  local name=$1 from=$SECONDS code=0
  shift
  printf '==> %s\n' "$name" >&2
  "$@" || code=$?
  local row
  row=$(printf '%-10s %4d s  %s' "$name" "$((SECONDS - from))" "$([ "$code" = 0 ] && echo ok || echo "exit $code")")
  stages+=("$row")
  printf '<== %s\n' "$row" >&2
  return "$code"
}

# summary: the table of all stages so far, also when one failed.
summary() {
  printf '\n%s\n' "stage      time    result" >&2
  printf '%s\n' "${stages[@]}" >&2
  printf '%-10s %4d s\n' total "$SECONDS" >&2
}

# as_root COMMAND...: through sudo where we are not root.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "'$*' needs root" "run it as root, or install sudo"
  fi
}

# kernel_id SPEC: registers a kernel (nothing is fetched twice) and prints its name.
kernel_id() {
  local row
  row=$("$hgm" kernel add "$1" --json) || return
  row=$(printf '%s' "$row" | tr -d '\n' | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p')
  [ -n "$row" ] || fail "hgm kernel add $1 named no kernel" "run: $hgm kernel add $1"
  printf '%s\n' "$row"
}

# flat: the first object on stdin without what stands in objects and lists inside it.
flat() {
  awk '{
    for (i = 1; i <= length($0); i++) {
      c = substr($0, i, 1)
      if (c == "\"" && last != "\\") text = !text
      if (!text && c ~ /[[{]/) depth++
      if (depth == 1) printf "%s", c
      if (!text && c ~ /[]}]/) depth--
      last = c
    }
  }'
}

# field NAME: a number of the last line of $summary, which the caller has set, its own one before
# those of objects in it; - if it has none.
field() {
  local line value
  # shellcheck disable=SC2154
  line=$(printf '%s\n' "$summary" | tail -n 1)
  value=$(
    printf '%s\n%s\n' "$(printf '%s\n' "$line" | flat)" "$line" | tr ',{}' '\n\n\n' |
      sed -n "s/^ *\"$1\": *\([-0-9.eE]*\) *\$/\1/p" | head -n 1
  )
  printf '%s' "${value:--}"
}
