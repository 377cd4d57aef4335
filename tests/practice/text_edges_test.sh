#!/usr/bin/env bash
# Text as editors and other systems leave it: marks of byte order, ends of lines, blank lines, characters
# beyond 16 bits, halves of them, zero bytes, numbers beyond any type.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$work/requests.jsonl" <<'PY'
import sys
lines = [
    b'\xef\xbb\xbf{"id":"mark","prompt":"Ge1:1 In"}\r\n',
    b"\r\n \t\r\n\v\f\n",
    b'{"id":"pair","prompt":"\\ud83d\\ude00"}\r\n',
    b'{"id":"raw","prompt":"\xf0\x9f\x98\x80"}\n',
    b'{"id":"separators","prompt":"a\xe2\x80\xa8b\xc2\x85c"}\n',
    b'{"id":"zero\\u0000byte","prompt":"a\\u0000b"}\n',
    b'  {"id":"room", "prompt" : "Ge1:1 In"}  \n',
    b'{"id":"high half","prompt":"\\ud83d"}\n',
    b'{"id":"low half","prompt":"\\ude00"}\n',
    b'{"id":"halves turned","prompt":"\\ude00\\ud83d"}\n',
    b'{"id":"latin","prompt":"caf\xe9"}\n',
    b'{"id":"overlong","prompt":"\xc0\x80"}\n',
    b'{"id":"raw zero","prompt":"a\x00b"}\n',
    b'{"id":"tab","prompt":"a\tb"}\n',
    b'{"id":"many","prompt":"a","max_tokens":99999999999999999999}\n',
    b'{"id":"mark","prompt":"again"}\n',
    b'\xef\xbb\xbf{"id":"files joined","prompt":"a"}\n',
    b'{"id":"old Mac","prompt":"Ge1:1 In"}\r{"id":"second","prompt":"a"}\n',
    b'{"id":"last","prompt":"Ge1:1 In"}',
]
open(sys.argv[1], "wb").write(b"".join(lines))
PY
run_one --model "$model" --input "$work/requests.jsonl" --output "$work/results.jsonl" --max-tokens 3
succeeds "edges of text"
json_check "edges of text" "$work/results.jsonl" <<'PY'
(results,) = lines
served = {line["id"]: line["tokens"] for line in results if "tokens" in line}
assert list(served) == ["mark", "pair", "raw", "separators", "zero\0byte", "room", "files joined", "last"], list(served)
assert served["pair"] == served["raw"] and served["mark"] == served["room"] == served["last"]
bad = [line for line in results if "error" in line]
assert [line["line"] for line in bad] == [*range(10, 19), 20], bad
assert [line["id"] for line in bad] == ["high half", "low half", "halves turned", "latin", "overlong",
                                        "raw zero", "tab", "many", "mark", "old Mac"], bad
assert '"mark" is that of line 1' in bad[8]["error"], bad[8]
PY
# Ids with a zero byte within stay apart in files that hold ids.
printf '{"id":"a\\u0000%s","prompt":"Ge%s"}\n' 1 1 2 2 >"$work/zero.jsonl"
for file in one two; do
  run_one --model "$model" --input "$work/zero.jsonl" --output "$work/zero.out" --max-tokens 2 \
    --dump-activations 0 --activations "$work/$file.h5"
  succeeds "activations of ids with a zero byte"
done
capture "$ATOLL" diff "$work/one.h5" "$work/two.h5"
succeeds "comparing ids with a zero byte"
check "both requests are compared" grep -q "^2 requests, .*; 0 requests have other tokens" "$work/stdout"
finish
