"""Real routers' choices for models with fewer experts, as files that --replay-routing reads."""

import ast
import struct


def read_npy(path):
    """Shape and flat numbers of an integer array."""
    data = path.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10 : 10 + length].decode())
    code = {"<i2": "h", "<i4": "i", "<u1": "B", "|u1": "B", "<u2": "H", "<i8": "q"}[header["descr"]]
    values = data[10 + length :]
    count = len(values) // struct.calcsize(code)
    return header["shape"], struct.unpack(f"<{count}{code}", values)


def write_npy(path, shape, values):
    header = str({"descr": "<i2", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header +
                     struct.pack(f"<{len(values)}h", *values))


def folded(chosen, experts, top_k):
    """A token's choices taken modulo the number of experts, all different."""
    out = []
    for expert in chosen:
        if expert % experts not in out:
            out.append(expert % experts)
    spare = (e for e in range(experts) if e not in out)
    while len(out) < top_k:
        out.append(next(spare))
    return out[:top_k]


def fold_routing(sources, output, tokens_of_each, layers, experts, top_k):
    """So many tokens' choices of each trace, one trace after the other."""
    out = []
    for source in sources:
        (have, their_layers, columns), values = read_npy(source)
        for token in range(tokens_of_each):
            for layer in range(layers):
                at = ((token % have) * their_layers + layer % their_layers) * columns
                out += folded(values[at : at + columns], experts, top_k)
    write_npy(output, (tokens_of_each * len(sources), layers, top_k), out)
