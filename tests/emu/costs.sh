#!/bin/bash
# dear PROFILE: the lines of kernels that cost too much, of the table that EMU_PROFILE writes (tests/emu/check.cc): place,
# memory, read|write, bytes, requests, cost, least cost. Without a bank conflict and in at most 1.5 times the sectors that
# would hold the words, or as tests/emu/exceptions.txt allows.
dear() {
    local place memory what bytes requests cost least file line text ratio name part most reason
    while IFS=$'\t' read -r place memory what bytes requests cost least; do
        file=${place%:*} line=${place##*:}
        file=kernels/cuda/${file##*/}
        ratio=$((cost * 100 / least))
        [ "$ratio" -gt "$([ "$memory" = shared ] && echo 100 || echo 150)" ] || continue
        text=$(sed -n "${line}p" "$file")
        while IFS='|' read -r name part most reason; do
            [[ $name == "${file##*/}" && $text == *"$part"* && -n $reason ]] || continue
            [ "$ratio" -le "$(awk -v m="$most" 'BEGIN { print int(m * 100 + 0.5) }')" ] && continue 2
        done < <(grep -v '^#' tests/emu/exceptions.txt)
        echo "$file:$line: $memory $what of $bytes bytes: $cost $([ "$memory" = shared ] && echo wavefronts ||
            echo sectors), least $least ($requests requests): $text"
    done <"$1"
}
