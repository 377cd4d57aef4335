#!/usr/bin/env bash
# Whole files that are something else than lines of requests. A job that serves nothing ends with an exit
# code of its own, so that what waits for its success does not start, and says why in one message.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nothing_served=65
model="$work/model.h5"
import_sample "$model"
mkdir "$work/files"
python3 - "$work/files" <<'PY'
import bz2, gzip, io, json, lzma, sys, tarfile, zipfile
folder = sys.argv[1]
rows = [{"id": f"r{i}", "prompt": "Ge1:1 In", "max_tokens": 3} for i in range(4)]
def each(change):
    return "".join(json.dumps(change(row)) + "\n" for row in rows).encode()
text = each(lambda row: row)
archive = io.BytesIO()
zipfile.ZipFile(archive, "w").writestr("requests.jsonl", text)
elements = text.splitlines()
tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w") as into:
    member = tarfile.TarInfo("requests.jsonl")
    member.size = len(text)
    into.addfile(member, io.BytesIO(text))
files = {f"utf-{name}": b"" + text.decode().encode(code) for name, code in [
    ("16", "utf-16"), ("16le", "utf-16-le"), ("16be", "utf-16-be"), ("32", "utf-32"),
    ("32le", "utf-32-le"), ("32be", "utf-32-be")]}
files |= {
    "utf-16be-mark": b"\xfe\xff" + text.decode().encode("utf-16-be"),
    "gzip": gzip.compress(text), "bzip2": bz2.compress(text), "xz": lzma.compress(text),
    "zip": archive.getvalue(), "parquet": b"PAR1\x15\x04\x15\x10",
    "array": json.dumps(rows).encode(),
    "array-over-lines": json.dumps(rows, indent=1).encode(),
    "array-of-lines": b"[\n" + b",\n".join(text.splitlines()) + b",\n]\n",
    "array-one-a-line": b"[\n" + b",\n".join(elements) + b"\n]\n",
    "array-crlf": b"\xef\xbb\xbf\r\n[\r\n" + b",\r\n".join(elements) + b"\r\n]\r\n",
    "array-of-one": b"[\n" + elements[0] + b"\n]\n",
    "array-cut": b"[\n" + b",\n".join(elements) + b"\n",
    "array-from-brackets": b"[" + b",\n".join(elements) + b"]\n",
    "array-commas-first": b"[ " + b"\n, ".join(elements) + b"\n]\n",
    "commas": b",\n".join(elements) + b"\n",
    "commas-all": b",\n".join(elements) + b",\n",
    "commas-first": b"\n,".join(elements) + b"\n",
    "commas-two": b",\n".join(elements[:2]) + b"\n",
    "wrapped": json.dumps({"requests": rows}).encode(),
    "wrapped-lines": b'{"requests":[\n' + b",\n".join(elements) + b"\n]}\n",
    "wrapped-more": b'{\n "model": "m",\n "data": [\n' + b",\n".join(elements) + b"\n ]\n}\n",
    "wrapped-one": b'{"requests":[\n' + elements[0] + b"\n]}\n",
    "tar": tar.getvalue(),
    "cr": text.replace(b"\n", b"\r"),
    "concatenated": b"".join(elements),
    "two-a-line": elements[0] + b" " + elements[1] + b"\n" + elements[2] + b" " + elements[3] + b"\n",
    "sequence": b"".join(b"\x1e" + line + b"\n" for line in elements),
    "strings": b"".join(json.dumps(line.decode()).encode() + b"\n" for line in elements),
    "latin-1": "".join(f'{{"id":"{i}","prompt":"caf\u00e9"}}\n' for i in "ab").encode("latin-1"),
    "object-over-lines": json.dumps(rows[0], indent=2).encode(),
    "envelope": each(lambda row: {"id": row["id"], "body": {"model": "m", "prompt": row["prompt"], "max_tokens": 3}}),
    "batch-chat": each(lambda row: {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions",
                                    "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}),
    "envelope-params": each(lambda row: {"custom_id": row["id"], "params": row}),
    "integer-ids": each(lambda row: row | {"id": int(row["id"][1:])}),
    "no-ids": each(lambda row: {"prompt": row["prompt"]}),
    "csv": b"id,prompt\n" + b"".join(f"{row['id']},{row['prompt']}\n".encode() for row in rows),
    "text": b"Tell me a story.\nAnd another.\n",
    "python": "".join(f"{row}\n" for row in rows).encode(),
    "other-keys": each(lambda row: {"id": row["id"], "messages": [{"role": "user", "content": "Hi"}]}),
}
for name, content in files.items():
    open(f"{folder}/{name}", "wb").write(content)
PY
cp "$model" "$work/files/model"
if zstd -q -c "$work/files/integer-ids" >"$work/files/zstd"; then passed; else failed "no zstd to compress with"; fi

# nothing FILE FAILED PATTERN: nothing in it is served, FAILED results are errors, one message says why.
nothing() {
  run_one --model "$model" --input "$work/files/$1" --output "$work/out.jsonl"
  refused "$1" "$nothing_served" "^atoll: no request could be served \\($2 of $2 failed, .*$3"
  json_check "$1: results are errors" "$work/out.jsonl" <<PY
assert len(lines[0]) == $2 and all(line["error"] and line["line"] for line in lines[0]), lines[0]
PY
  rm -f "$work/out.jsonl"
}
for name in utf-16 utf-16le utf-16be utf-16be-mark utf-32 utf-32le utf-32be; do
  encoding="${name:0:6}"
  nothing "$name" 1 "line 1: the file is ${encoding^^}.*iconv -f"
done
for name in gzip bzip2 xz zstd; do nothing "$name" 1 "compressed \\($name\\).*$name -dc"; done
nothing zip 1 "ZIP archive"
nothing parquet 1 "Parquet"
nothing model 1 "HDF5.*--input"
nothing array 1 "one JSON array: write one object a line, with jq -c '\\.\\[\\]'"
nothing array-over-lines 22 "one JSON array"
nothing array-of-lines 6 "one JSON array"
nothing array-one-a-line 6 "one JSON array: .*jq -c '\\.\\[\\]'"
nothing array-crlf 6 "one JSON array"
nothing array-of-one 3 "one JSON array"
nothing array-cut 5 "one JSON array"
nothing array-from-brackets 4 "one JSON array"
nothing array-commas-first 5 "one JSON array"
for name in commas commas-all commas-first; do nothing "$name" 4 "commas between its objects.*sed"; done
nothing commas-two 2 "commas between its objects"
nothing wrapped 1 "around requests.*jq -c '\\.\\[\"requests\"\\]\\[\\]'"
nothing wrapped-lines 6 "around all requests.*jq -c '\\.requests\\[\\]'"
nothing wrapped-more 9 "around all requests.*jq -c '\\.data\\[\\]'"
nothing wrapped-one 3 "around all requests"
nothing tar 1 "tar archive"
nothing cr 1 "carriage return.*tr"
nothing concatenated 1 "several objects.*jq -c"
nothing two-a-line 2 "several objects.*jq -c"
nothing sequence 4 "text sequence.*tr -d"
nothing strings 4 "string that holds JSON.*jq -r"
nothing latin-1 2 "not UTF-8 \\(byte 0xe9\\).*iconv -f LATIN1"
nothing object-over-lines 5 "spread over lines.*jq -c"
nothing envelope 4 "envelope.*\"body\""
run_one --model "$model" --input "$work/files/batch-chat" --output "$work/out.jsonl"
refused "batch-chat" "$nothing_served" "^atoll: no request could be served \\(4 of 4 failed, .*chat template"
rm -f "$work/out.jsonl"
nothing envelope-params 4 "envelope.*\"params\""
nothing integer-ids 4 "\"id\" is 0.*write \"0\""
nothing no-ids 4 "no \"id\""
nothing csv 5 "table or plain text"
nothing text 2 "table or plain text"
nothing python 4 "Python"
nothing other-keys 4 "jobs/chat.py"

# What the advice leads to is served.
iconv -f UTF-16LE -t UTF-8 "$work/files/utf-16" >"$work/advised"
run_one --model "$model" --input "$work/advised" --output "$work/advised.out.jsonl"
succeeds "converted as advised"
gzip -dc "$work/files/gzip" >"$work/advised"
run_one --model "$model" --input "$work/advised" --output "$work/out.jsonl"
succeeds "decompressed as advised"
same "one text, two ways" "$work/advised.out.jsonl" "$work/out.jsonl"
advised() { # NAME COMMAND...: reads the file of that name
  "${@:2}" <"$work/files/$1" >"$work/converted"
  run_one --model "$model" --input "$work/converted" --output "$work/out.jsonl"
  succeeds "$1 converted as advised"
  same "$1 converted as advised" "$work/advised.out.jsonl" "$work/out.jsonl"
}
for name in commas commas-all commas-first; do advised "$name" sed 's/^,//; s/,\r*$//'; done
advised cr tr '\r' '\n'
advised sequence tr -d '\036'

# --- on several ranks, from a pipe, without room for any request, and nothing is loaded for it
atoll_on 3 run --model "$model" --input "$work/files/array" --output "$work/out.jsonl" --report "$work/report.json"
refused "an array on 3 ranks" "$nothing_served" "one JSON array"
capture bash -c "'$ATOLL' run --progress none --model '$model' --input <(cat '$work/files/gzip') --output '$work/out.jsonl'"
refused "gzip from a pipe" "$nothing_served" "gzip"
printf '{"id":"%s","prompt":"Ge1:1 In the","max_tokens":500}\n' a b >"$work/large"
run_one --model "$model" --input "$work/large" --output "$work/out.jsonl" --kv-tokens 64
refused "requests beyond the KV cache" "$nothing_served" "2 of 2 failed, the first in line 1: .*holds 64 \(as --kv-tokens says\); raise --kv-tokens"
SLURM_JOB_ID=1 SLURM_MEM_PER_NODE=10 run_one --model "$model" --input "$work/large" --output "$work/out.jsonl"
refused "requests beyond the job's memory" "$nothing_served" "holds [0-9]+ \(40 % of its memory, which is limited by SLURM_MEM_PER_NODE\)"
check "no journal is left" test ! -e "$work/out.jsonl.journal"

# --- one that is served is a success, and how many were not is said
sed 's/,$//' "$work/files/array-of-lines" >"$work/mixed"
run_one --model "$model" --input "$work/mixed" --output "$work/out.jsonl"
succeeds "lines of an array without commas"
check "how many failed" grep -qx "2 of 6 requests failed, the first in line 1: .*one JSON array.*" "$work/stderr"
check "no message of failure" bash -c "! grep -q '^atoll: ' '$work/stderr'"
# A broken line, wherever it is and whatever it leaves open, keeps none of the others from being served.
for broken in '{"id":"x","tokens":[1,2' '{"id":"x",' '{' '{"id":"x","prompt":"cut' '{"id":"x","prompt":"a"},' '[]' ']}'; do
  for place in 1 3 5; do
    sed "$((place - 1))r /dev/stdin" "$work/advised" <<<"$broken" >"$work/broken"
    if ((place == 1)); then { echo "$broken" && cat "$work/advised"; } >"$work/broken"; fi
    run_one --model "$model" --input "$work/broken" --output "$work/out.jsonl"
    succeeds "line $place is $broken"
    grep -v '"error"' "$work/out.jsonl" >"$work/served" || true
    same "line $place is $broken" "$work/advised.out.jsonl" "$work/served"
  done
done
run_one --model "$model" --input "$work/advised" --output "$work/out.jsonl"
succeeds "a good file"
check "silence about failures" test ! -s "$work/stderr"

# --- resumed when all that can be served was served before
ln -s /dev/full "$work/full"
run_one --model "$model" --input "$work/mixed" --output "$work/again.jsonl" --report "$work/full"
refused "a report on a full disk" 1 "space"
run_one --model "$model" --input "$work/mixed" --output "$work/again.jsonl" --resume
succeeds "resumed with nothing left to serve"
check "what was served before counts" grep -q "2 of 6 requests failed" "$work/stderr"

# --- a file without any request is refused as ever
printf ' \n\n' >"$work/blank"
run_one --model "$model" --input "$work/blank" --output "$work/out.jsonl"
refused "blank lines" 1 "holds no request"
finish
