#!/usr/bin/env bash
# Folders that hold more than one model's files, or the model in an unusual place: what is imported is
# what transformers would load, and what was left aside is said.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python3 - "$sample" "$work" <<'PYTHON'
import json, os, sys
import make_model
from make_model import Folder, header_of, tensor_of, values_of, write_raw, write_safetensors

sample, work = sys.argv[1:]


def folder(name, maker=make_model.qwen3_moe):
    made = Folder(sample, f"{work}/{name}")
    maker(made)
    return made


def older(made):
    """The same model with other weights."""
    return {name: tensor_of([2 * value for value in values_of(tensor)], tensor[1], tensor[0])
            for name, tensor in made.tensors.items()}


def write_index(made, weight_map, file="model.safetensors.index.json"):
    with open(made.path(file), "w", encoding="utf-8") as out:
        json.dump({"metadata": {}, "weight_map": weight_map}, out)


def shard(made, tensors, files=("model-00001-of-00002.safetensors",
                                "model-00002-of-00002.safetensors")):
    """Writes two shards; returns the map that an index would have."""
    weight_map = {}
    for number, file in enumerate(files):
        part = {name: tensors[name] for name in list(tensors)[number::2]}
        os.makedirs(os.path.dirname(made.path(file)), exist_ok=True)
        write_safetensors(made.path(file), part)
        weight_map.update({name: file for name in part})
    return weight_map


def sharded(name, maker=make_model.qwen3_moe):
    made = folder(name, maker)
    os.remove(made.path("model.safetensors"))
    return made


plain = folder("plain")

# --- one file beside what an earlier save left
made = folder("both")
write_index(made, shard(made, older(made)))
made = folder("index-left")
write_index(made, shard(made, older(made)))
for number in (1, 2):
    os.remove(made.path(f"model-0000{number}-of-00002.safetensors"))
made = folder("index-broken")
open(made.path("model.safetensors.index.json"), "w").write('{"weight_map": {')
made = folder("shards-left")
shard(made, older(made))
made = folder("index-of-the-file")
write_index(made, {name: "model.safetensors" for name in made.tensors})

# --- shards
made = sharded("sub-folder")
write_index(made, shard(made, made.tensors, ("parts/a.safetensors", "parts/b.safetensors")))
made = sharded("stale-tensors")  # a shard that still holds another shard's tensors, from before
weight_map = shard(made, made.tensors)
second = {n: t for n, t in made.tensors.items() if weight_map[n].startswith("model-00002")}
before = {n: t for n, t in older(made).items() if weight_map[n].startswith("model-00001")}
write_safetensors(made.path("model-00002-of-00002.safetensors"), {**second, **before})
write_index(made, weight_map)
made = sharded("wrong-shard")
weight_map = shard(made, made.tensors)
weight_map["model.norm.weight"] = ("model-00001-of-00002.safetensors"
                                   if weight_map["model.norm.weight"].startswith("model-00002")
                                   else "model-00002-of-00002.safetensors")
weight_map["nowhere.weight"] = "model-00001-of-00002.safetensors"
write_index(made, weight_map)
made = sharded("not-in-the-index")
weight_map = shard(made, made.tensors)
del weight_map["model.norm.weight"]
write_index(made, weight_map)
made = sharded("no-index")
shard(made, made.tensors)
for hidden in ("._model-00001-of-00002.safetensors", ".cache/model.safetensors"):
    os.makedirs(os.path.dirname(made.path(hidden)), exist_ok=True)
    open(made.path(hidden), "wb").write(b"Mac OS X")
write_safetensors(made.path("consolidated.safetensors"), older(made))
write_safetensors(made.path("adapter_model.safetensors"),
                  {"base.lora_A.weight": tensor_of([1.0], [1], "F32")})
made = sharded("named-file")
made.config["transformers_weights"] = "weights.safetensors"
made.write_config()
write_safetensors(made.path("weights.safetensors"), made.tensors)
write_safetensors(made.path("model.safetensors"), older(made))

# --- tensors
made = folder("base-names")
made.tensors = {name.removeprefix("model."): tensor for name, tensor in made.tensors.items()}
made.write()
made = folder("others-beside")
header = header_of(made.tensors)
end = max(entry["data_offsets"][1] for entry in header.values())
extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F64", [4], bytes(32)),
         "model.layers.0.mlp.counts": ("I64", [2], bytes(16)),
         "model.layers.9.mlp.gate.weight": ("F8_E4M3", [3], bytes(3)),
         "projector.weight": ("F6_E3M2", [4], bytes(3))}
for name, (dtype, shape, content) in extra.items():
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
    end += len(content)
write_raw(made.path("model.safetensors"), header, {**made.tensors, **extra})

for kind, maker, block, names in (
        ("qwen3", make_model.qwen3_moe, "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("mixtral", make_model.mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
        ("olmoe", make_model.olmoe, "mlp", ("gate_proj", "up_proj", "down_proj"))):
    folder(kind, maker)
    made = folder(f"{kind}-fused", maker)
    gate, up, down = names
    for layer in range(made.config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.{block}.", f"model.layers.{layer}.mlp."
        router = made.tensors.pop(old + "gate.weight")
        parts = [{name: made.tensors.pop(f"{old}experts.{expert}.{name}.weight") for name in names}
                 for expert in range(4)]
        made.tensors[new + "gate.weight"] = router
        made.tensors[new + "experts.gate_up_proj"] = (
            "BF16", [4, 96, 32], b"".join(part[gate][2] + part[up][2] for part in parts))
        made.tensors[new + "experts.down_proj"] = (
            "BF16", [4, 32, 48], b"".join(part[down][2] for part in parts))
    made.write()

# --- tied heads
made = folder("tied")
made.config["tie_word_embeddings"] = True
embedding = made.tensors["model.embed_tokens.weight"]
head = made.tensors.pop("lm_head.weight")
made.write()


def tied(name, **tensors):
    other = Folder(sample, f"{work}/{name}")
    other.config, other.tensors = made.config, {**made.tensors, **tensors}
    other.write()
    return other


tied("tied-equal", **{"lm_head.weight": embedding})
wide = tensor_of(values_of(embedding), embedding[1], "F32")
tied("tied-wide", **{"lm_head.weight": wide})
zeros = [0.0] + values_of(embedding)[1:]
signed = {"model.embed_tokens.weight": zeros, "lm_head.weight": [-0.0] + zeros[1:]}
for name, values in signed.items():
    signed[name] = tensor_of(values, embedding[1], "BF16")
tied("tied-zero", **signed)
tied("tied-one-zero", **{"model.embed_tokens.weight": signed["model.embed_tokens.weight"]})
tied("tied-different", **{"lm_head.weight": head})
other = tied("tied-head-only", **{"lm_head.weight": embedding})
del other.tensors["model.embed_tokens.weight"]
other.write()
other = tied("tied-in-the-index")
os.remove(other.path("model.safetensors"))
weight_map = shard(other, other.tensors)
weight_map["lm_head.weight"] = "model-00001-of-00002.safetensors"
write_index(other, weight_map)

# --- nothing to read
made = sharded("only-bin")
for number in (1, 2):
    open(made.path(f"pytorch_model-0000{number}-of-00002.bin"), "wb").close()
write_index(made, {"a": "pytorch_model-00001-of-00002.bin"}, "pytorch_model.bin.index.json")
made = sharded("only-adapter")
write_safetensors(made.path("adapter_model.safetensors"), {"a": tensor_of([1.0], [1], "F32")})
made = sharded("pointer")
open(made.path("model.safetensors"), "w").write(
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
made = sharded("shard-missing")
write_index(made, shard(made, made.tensors))
os.remove(made.path("model-00002-of-00002.safetensors"))


# --- shards without an index, whose names do not go together
def split(made, files):
    for number, file in enumerate(files):
        names = list(made.tensors)[number::len(files)]
        write_safetensors(made.path(file), {name: made.tensors[name] for name in names})


def names(count, numbers, stem="model"):
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in numbers]


split(sharded("two-saves"), names(2, [1]) + names(4, [3, 4]))
split(sharded("two-stems"), names(2, [1]) + names(2, [2], "model.fp16"))
split(sharded("incomplete"), names(4, [1, 3]))
split(sharded("last-missing"), names(3, [1, 2]))
split(sharded("above-the-count"), names(2, [1, 2, 3]))
split(sharded("from-zero"), names(3, [0, 1, 2]))
split(sharded("without-padding"), [f"model-{number}-of-11.safetensors" for number in range(1, 12)])

# --- links to what is not there
made = sharded("link-beside-shards")
shard(made, made.tensors)
os.symlink("../blobs/0123", made.path("model.safetensors"))
made = sharded("link-beside-an-index")
write_index(made, shard(made, made.tensors))
os.symlink("../blobs/0123", made.path("model.safetensors"))
made = sharded("link-alone")
os.symlink("model.safetensors", made.path("model.safetensors"))
for name, index in (("link-of-a-shard", False), ("link-of-a-shard-in-the-index", True)):
    made = sharded(name)
    weight_map = shard(made, made.tensors)
    if index:
        write_index(made, weight_map)
    os.remove(made.path("model-00002-of-00002.safetensors"))
    os.symlink("../blobs/0123", made.path("model-00002-of-00002.safetensors"))
made = sharded("link-of-the-index")
shard(made, made.tensors)
os.symlink("../blobs/0123", made.path("model.safetensors.index.json"))
made = sharded("links")
for file in shard(made, made.tensors, ("blobs/4567", "blobs/89ab")).values():
    if not os.path.islink(made.path(f"{file[6:]}.safetensors")):
        os.symlink(file, made.path(f"{file[6:]}.safetensors"))

made = folder("truncated")
os.truncate(made.path("model.safetensors"), os.path.getsize(made.path("model.safetensors")) - 100)
PYTHON

import_folder() { capture "$ATOLL" import "$work/$1" --output "$work/$1.h5"; }
for model in plain tied qwen3 mixtral olmoe; do
  import_folder "$model"
  succeeds "$model"
  check "$model: nothing to say" test ! -s "$work/stderr"
done

# becomes MODEL FOLDER PATTERN: the folder becomes that model's file, and what is said matches (empty:
# nothing is said).
becomes() {
  import_folder "$2"
  succeeds "$2" || return 0
  same "$2" "$work/$1.h5" "$work/$2.h5"
  if [[ -z "$3" ]]; then
    check "$2: nothing to say" test ! -s "$work/stderr"
  else
    check "$2: says $3" grep -qE "^import: .*$3" "$work/stderr"
  fi
  check "$2: no failure line" test "$(grep -c '^atoll: ' "$work/stderr")" = 0
}

becomes plain both 'took .*/model.safetensors, as transformers does, and not .*index.json'
becomes plain index-left 'took .*/model.safetensors.* not all there'
becomes plain index-broken 'took .*/model.safetensors.*line 1, column 17'
becomes plain shards-left 'took .*/model.safetensors.* not the 2 model-'
becomes plain index-of-the-file ''
becomes plain sub-folder ''
becomes plain stale-tensors 'tensors are in several of the files'
becomes plain wrong-shard '1 tensor is not where the index says.*model.norm.weight'
becomes plain not-in-the-index '1 tensor is not where the index says.*model.norm.weight'
becomes plain no-index 'adapter_model.safetensors was not read'
becomes plain named-file ''
becomes plain base-names ''
becomes plain from-zero ''
becomes plain without-padding ''
becomes plain links ''
becomes plain others-beside '3 tensors have no place in this model and left out'
for kind in qwen3 mixtral olmoe; do
  becomes "$kind" "$kind-fused" 'taken apart: .*gate_up_proj.*save_original_format=False'
done
becomes tied tied-equal ''
becomes tied tied-wide ''
import_folder tied-one-zero
becomes tied-one-zero tied-zero ''
becomes tied tied-head-only 'took lm_head.weight as model.embed_tokens.weight too'
becomes tied tied-in-the-index ''

import_folder tied-different
refused "a tied head that differs" 1 'lm_head.weight differs.*tie_word_embeddings.*false in config.json'
sed -i 's/"tie_word_embeddings": true/"tie_word_embeddings": false/' "$work/tied-different/config.json"
becomes plain tied-different ''

import_folder only-bin
refused "PyTorch's own files" 1 'pytorch_model-00001-of-00002.bin and 1 more .*save_pretrained'
import_folder only-adapter
refused "an adapter" 1 'adapter_model.safetensors.*merge the adapter'
import_folder pointer
refused "a pointer of Git LFS" 1 'git lfs pull'
import_folder shard-missing
refused "a shard that is missing" 1 'model-00002-of-00002.safetensors.*missing'

# not_read FOLDER PATTERN: refused, with this said.
not_read() {
  import_folder "$1"
  refused "$1" 1 "$2"
  check "$1: no model file" test ! -e "$work/$1.h5"
}
not_read two-saves 'model-00001-of-00002.safetensors and model-00003-of-00004.safetensors are of different saves.*remove'
not_read two-stems 'model-00001-of-00002.safetensors and model.fp16-00002-of-00002.safetensors are of different'
not_read incomplete 'model-00002-of-00004.safetensors is missing .2 of 4'
not_read last-missing 'model-00003-of-00003.safetensors is missing .2 of 3'
not_read above-the-count 'model-00003-of-00002.safetensors has a number above its count'
for kind in beside-shards beside-an-index; do
  not_read "link-$kind" '/model.safetensors: it is a symbolic link to ../blobs/0123, .*No such file.*download'
done
not_read link-alone '/model.safetensors: it is a symbolic link .*Too many levels'
for kind in of-a-shard of-a-shard-in-the-index; do
  not_read "link-$kind" '/model-00002-of-00002.safetensors: it is a symbolic link to ../blobs/0123'
done
not_read link-of-the-index '/model.safetensors.index.json: it is a symbolic link to ../blobs/0123'
not_read truncated 'model.safetensors: it is truncated .by its header it has [0-9]+ bytes, here are [0-9]+.; download'
finish
