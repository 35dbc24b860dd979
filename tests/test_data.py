"""MNIST のデータが、公開されたままの姿で入っている。"""

import hashlib
import re
import socket

import pytest
from torchvision.datasets import MNIST

from conftest import ROOT

DATA_DIR = ROOT / "02_pytorch_mnist" / "data"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", MD5)
def test_the_files_are_the_published_ones(name):
    content = (DATA_DIR / "MNIST" / "raw" / name).read_bytes()
    assert hashlib.md5(content).hexdigest() == MD5[name]


def test_the_note_beside_the_data_states_the_same_files():
    note = (DATA_DIR / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\S+-ubyte)` \| \S+ \| ([\d,]+) \| `(\w+)`", note)
    assert {name: md5 for name, _, md5 in rows} == MD5
    for name, size, _ in rows:
        assert (DATA_DIR / "MNIST" / "raw" / name).stat().st_size == int(size.replace(",", ""))
    assert "Yann LeCun, Corinna Cortes, Christopher J. C. Burges" in note
    assert "Attribution-ShareAlike 3.0" in note


@pytest.mark.parametrize("train, count", [(True, 60_000), (False, 10_000)])
def test_torchvision_finds_them_without_a_network(monkeypatch, train, count):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(MNIST(DATA_DIR, train=train, download=True)) == count
