"""アクセラレータ（GPU など）のふりをするデバイス。レッスンがデバイスを正しく扱うかを、どこでも調べる。

DeviceTensor は、自分はデバイスにあると答え、値は CPU に持つ。本物の CUDA や MPS が断ることは断る:
2 つのデバイスのテンソルを混ぜた計算、デバイスのテンソルの numpy への変換、float64（MPS にはない）。
"""

import re

import torch
import torch.optim.optimizer as optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("meta")  # どの PyTorch も知っている、CPU でないデバイスの名前を借りる
DEVICE_IDIOM = re.compile(r'^device = torch\.device\(\s*"mps" if .*?"cpu"\s*\)$', re.M | re.S)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}  # 2 つのデバイスにまたがってよい
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}  # 添字は CPU にあってよい


class DeviceTensor(torch.Tensor):
    """デバイスにあるふりをするテンソル。値は CPU のテンソル held にある。"""

    @staticmethod
    def __new__(cls, held):
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device doesn't support {held.dtype}")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})

    def __repr__(self):
        return repr(self.detach().held)

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __getitem__(self, key):
        return super().__getitem__(torch.tensor(key) if isinstance(key, list) else key)

    def tolist(self):
        return self.detach().held.tolist()

    def numpy(self):
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args, **kwargs):
        return self.numpy()


def to_cpu(value):
    return tree_map_only(DeviceTensor, lambda tensor: tensor.held, value)


def to_device(value):
    return tree_map_only(
        torch.Tensor,
        lambda tensor: tensor if isinstance(tensor, DeviceTensor) else DeviceTensor(tensor),
        value,
    )


def compute(operation, args, kwargs):
    """operation を CPU で計算し、結果をあるべきデバイスに置く。本物のデバイスが断るものは断る。"""
    leaves = []  # 引数は、テンソルか数か、そのリストである
    for value in (*args, *kwargs.values()):
        leaves += value if isinstance(value, (list, tuple)) else [value]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    if kwargs.get("device") is not None:  # .to(device)、torch.arange(…, device=…) など、行き先が書いてある
        goes_to_device = torch.device(kwargs["device"]) == DEVICE
        result = operation(*to_cpu(args), **{**to_cpu(kwargs), "device": torch.device("cpu")})
        return to_device(result) if goes_to_device else result
    if not on_device:
        return operation(*args, **kwargs)

    strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0]
    if operation in INDEXING:
        values = args[2:3]
        strangers = [
            tensor for tensor in (args[0], *values) if any(tensor is stranger for stranger in strangers)
        ]
    if strangers and operation not in COPIES:
        raise RuntimeError(
            f"{operation}: tensors on the device and on the CPU, {[tuple(t.shape) for t in strangers]}"
        )
    result = operation(*to_cpu(args), **to_cpu(kwargs))
    if operation is aten._local_scalar_dense.default:  # item()
        return result
    if result is not None and operation._schema.is_mutable and operation._schema.name.endswith("_"):
        return args[0]  # add_ などは、自分自身を返す
    return to_device(result)


class PretendedDevice(TorchDispatchMode):
    """この中では、DEVICE に送られたテンソルが DeviceTensor になる。"""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def run_cells_on_pretended_device(path, run_name):
    """レッスンの device を DEVICE に変え、# %% のセルを 1 つずつ実行して、残った変数を返す。"""
    with open(path, encoding="utf-8") as file:
        source, count = DEVICE_IDIOM.subn(f'device = torch.device("{DEVICE}")', file.read())
    assert count == 1
    variables = {"__name__": run_name, "__file__": path}
    supported = optimizer._get_fused_kernels_supported_devices
    optimizer._get_fused_kernels_supported_devices = lambda: [*supported(), DEVICE.type]
    # model.to(device) が、本物のデバイスと同じく、2 つの層が共有する重みを共有したまま移すようにする
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with PretendedDevice():
            for cell in re.split(r"^(?=# %%)", source, flags=re.M):
                exec(compile(cell, path, "exec"), variables)
    finally:
        optimizer._get_fused_kernels_supported_devices = supported
        torch.__future__.set_swap_module_params_on_conversion(False)
    return variables
