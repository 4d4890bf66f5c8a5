"""The model of this folder as a PyTorch module, and safetensors files with nothing but the standard library and PyTorch.

`examples/from_pytorch.cpp` has the same model; the names of its parameters are those of this state_dict.
"""
import itertools
import json
import struct

import torch
from torch import nn


class Mmoe(nn.Module):
    """Experts that all tasks share, and for every task a gate that mixes them."""

    def __init__(self, inputs, experts, outputs, tasks):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(inputs, experts, bias=False) for _ in range(tasks))

    def forward(self, x):
        experts = torch.stack([torch.relu(e(x)) for e in self.experts], -2)  # [..., E, H]
        return [(torch.softmax(g(x), -1).unsqueeze(-2) @ experts).squeeze(-2) for g in self.gates]


class Ranker(nn.Module):
    """Logits of several tasks for candidates of a user with a history."""

    def __init__(self, items, users, width, heads, experts, expert_width, tower_width, tasks):
        super().__init__()
        self.item = nn.Embedding(items, width)
        self.user = nn.Embedding(users, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mmoe = Mmoe(3 * width, experts, expert_width, tasks)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(expert_width, tower_width), nn.ReLU(), nn.Linear(tower_width, 1)) for _ in range(tasks))

    def forward(self, users, history, hidden, candidates):
        """users [B], history [B, L] with hidden [B, L] (true: padding; None: nothing is), candidates [B, N] -> [B, N, tasks]"""
        query, keys = self.item(candidates), self.item(history)
        interest, _ = self.attention(query, keys, keys, key_padding_mask=hidden, need_weights=False)
        user = self.user(users).unsqueeze(1).expand_as(query)
        mixed = self.mmoe(torch.cat([interest, query, user], -1))
        return torch.cat([tower(y) for tower, y in zip(self.towers, mixed)], -1)


def like(state, heads):
    """A Ranker with the sizes of a state_dict; the number of heads is not in it."""
    def count(pattern):
        return next(n for n in itertools.count() if pattern.format(n) not in state)

    items, width = state["item.weight"].shape
    return Ranker(items, state["user.weight"].shape[0], width, heads, count("mmoe.experts.{}.weight"),
                  state["mmoe.experts.0.weight"].shape[0], state["towers.0.0.weight"].shape[0], count("towers.{}.0.weight"))


def padded(ids, offsets):
    """Sequences one after another, as C++ has them, to [B, L] and the mask that hides the padding."""
    lengths = offsets[1:] - offsets[:-1]
    at = torch.arange(int(lengths.max()))
    hidden = at >= lengths.unsqueeze(1)
    table = torch.zeros(hidden.shape, dtype=torch.long)
    table[~hidden] = ids
    return table, hidden


# A safetensors file is eight bytes with the length of a JSON header, the header, and the numbers. The package of that name does
# the same as the two functions below, and maps the file instead of reading it.

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "I16": torch.int16, "U8": torch.uint8}


def save_file(tensors, path, metadata=None):
    names = {dtype: name for name, dtype in TYPES.items()}
    header, data = {"__metadata__": {"format": "pt", **(metadata or {})}}, b""
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):  # aligned by their order
        numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def load_file(path):
    """Tensors and metadata."""
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), bytearray(file.read())
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = torch.frombuffer(data[begin:end], dtype=TYPES[entry["dtype"]]) if end > begin else torch.empty(0)
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors, metadata
