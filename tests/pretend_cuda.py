"""A GPU for machines without one: numbers on the CPU that say they are on CUDA.

PyTorch's fake tensors have no values, so code that looks at values (matching, NMS, training loops)
cannot run on them; nor do older releases of PyTorch make them without a GPU. These have values,
and an operation that would fail on a GPU fails here, too: one that mixes tensors of both devices,
or hands a tensor on CUDA to NumPy.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
COPIES = {Tensor.copy_, Tensor.type_as, Tensor.data.__set__, Tensor.grad.__set__}
MOVES = {Tensor.to: None, Tensor.cuda: CUDA, Tensor.cpu: CPU}


class OnCuda(Tensor):
    """A tensor whose numbers lie on the CPU, and which says that it is on CUDA."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda tensor to numpy, use .cpu() first")

    numpy = __array__

    def __format__(self, specification):
        return format(self.item() if self.ndim == 0 else self.tolist(), specification)

    def __deepcopy__(self, memo):
        copy = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copy = nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor, copied if it comes from the other device."""
    if isinstance(tensor, OnCuda) == (device.type == "cuda"):
        return tensor
    return tensor.clone().as_subclass(OnCuda if device.type == "cuda" else Tensor)


def move_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Parameters and buffers on `device`, each once, like nn.Module.to."""
    moved = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                new = nn.Parameter(on_device(value.detach(), device), value.requires_grad)
                part._parameters[name] = moved.setdefault(id(value), new)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else on_device(value, device)
    return module


def device_in(values: list) -> torch.device | None:
    """The device that the arguments of a call ask for: a device, its name, or a tensor's."""
    for value in values:
        if isinstance(value, torch.device):
            return value
        if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"):
            return torch.device(value)
        if isinstance(value, Tensor):
            return value.device
    return None


def refuse_mixture(function, values: list) -> None:
    """Raise where a GPU would: the rules of PyTorch for arguments on two devices."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    on_cpu = [v for v in tensors if not isinstance(v, OnCuda) and v.ndim > 0]
    if not on_cpu or not any(isinstance(v, OnCuda) for v in tensors) or function in COPIES:
        return
    if function is Tensor.__getitem__ and isinstance(tensors[0], OnCuda):
        return  # an index may lie on the CPU, the indexed tensor may not
    name = getattr(function, "__name__", function)
    raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda and cpu")


class PretendCuda(TorchFunctionMode):
    """While it is on, device="cuda" makes tensors that say so, and mixtures are refused."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in MOVES:
            return self.move(function, args, kwargs)
        values = tree_leaves((args, kwargs))
        refuse_mixture(function, values)
        if function == Tensor.grad.__get__:
            gradient = function(*args)
            return gradient if gradient is None else gradient.as_subclass(type_of(args[0]))
        if kwargs.get("device") is None:
            return function(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"expected a {device} generator, got one on {generator.device}")
        made = function(*args, **kwargs, device=CPU)
        return made.as_subclass(OnCuda if device.type == "cuda" else Tensor)

    def move(self, function, args, kwargs):
        """Tensor.to, .cuda and .cpu."""
        tensor, *rest = args
        device = MOVES[function] or device_in([*rest, kwargs.pop("device", None)])
        if device is None:
            return function(*args, **kwargs)
        others = [v for v in rest if not isinstance(v, (torch.device, str, Tensor))]
        dtype = next((v.dtype for v in rest if isinstance(v, Tensor)), None)
        result = on_device(tensor, device)
        result = result if dtype is None else Tensor.to(result, dtype)
        return Tensor.to(result, *others, **kwargs) if others or kwargs else result


def type_of(tensor: Tensor) -> type:
    return OnCuda if isinstance(tensor, OnCuda) else Tensor


@contextmanager
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, a GPU seems to be there."""
    plain_to = nn.Module.to

    def module_to(module: nn.Module, *args, **kwargs) -> nn.Module:
        device = device_in([*args, kwargs.pop("device", None)])
        rest = [v for v in args if not isinstance(v, (torch.device, str))]
        module = module if device is None else move_module(module, device)
        return plain_to(module, *rest, **kwargs) if rest or kwargs else module

    monkeypatch.setattr(nn.Module, "to", module_to)
    monkeypatch.setattr(nn.Module, "cpu", lambda module: module_to(module, CPU))
    monkeypatch.setattr(nn.Module, "cuda", lambda module: module_to(module, CUDA))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    with PretendCuda():
        yield
