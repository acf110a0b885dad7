#!/usr/bin/env bash
# Fetches jars from Maven Central, several at a time, and checks each against its checksum. What is there already is checked
# again and not fetched again; nothing else runs a build tool or a network.
# Usage: scripts/jars.sh LIST [DIR]
# LIST has lines `sha256 group:artifact:version[:classifier]`; DIR (~/.cache/posthaste/jars: fresh clones share it) gets
# GROUP/ARTIFACT-VERSION[-CLASSIFIER].jar, as engines/src/jars.rs has it.
set -euo pipefail

list=${1:?"usage: scripts/jars.sh LIST [DIR]"}
export DIR=${2:-$HOME/.cache/posthaste/jars}
central=https://repo.maven.apache.org/maven2

fetch() { # sha256, file in DIR, address
  local part
  mkdir -p "$DIR/$(dirname "$2")"
  part=$(mktemp "$DIR/$2.XXXXXX")
  if ! curl -fsSL --retry 5 --retry-connrefused --connect-timeout 10 --max-time 300 -o "$part" "$3"; then
    rm -f "$part"
    echo "could not fetch $3: is there a network, and may it reach Maven Central?" >&2
    return 1
  fi
  if ! sha256sum --status -c <<<"$1  $part"; then
    rm -f "$part"
    echo "$3 is not what $LIST says: its checksum differs" >&2
    return 1
  fi
  chmod 644 "$part"
  mv "$part" "$DIR/$2" # whole or not at all, whoever else fetches it
}
export -f fetch
export LIST=$list

wanted=()
while read -r sum coordinates; do
  case $sum in '' | '#'*) continue ;; esac
  IFS=: read -r group artifact version classifier <<<"$coordinates"
  name=$artifact-$version${classifier:+-$classifier}.jar
  if ! sha256sum --status -c <<<"$sum  $DIR/$group/$name" 2>/dev/null; then
    wanted+=("$sum" "$group/$name" "$central/${group//.//}/$artifact/$version/$name")
  fi
done <"$list"

[ ${#wanted[@]} = 0 ] && exit 0
echo "fetching $((${#wanted[@]} / 3)) jars of $list from Maven Central into $DIR" >&2
printf '%s\0' "${wanted[@]}" | xargs -0 -n 3 -P 8 bash -c 'fetch "$@"' fetch
