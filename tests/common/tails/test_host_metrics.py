from __future__ import annotations

from fogline.common.metrics import TailMetrics
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.tails.host import _observe
from fogline.common.wire.tensors import Dtype, Frame, Role, Stage, TensorHeader


def test_an_operation_is_counted_by_kind_role_and_what_it_took() -> None:
    metrics = TailMetrics()
    up = TensorHeader(Role.ACTIVATION, Dtype.FLOAT32, (4, 5), 40, (Stage(2, 1),))
    down = TensorHeader(Role.OUTPUT, Dtype.FLOAT32, (4,), 16)
    done = pb.Answer(compute_us=2_000_000, queued_us=500_000)
    _observe(metrics, Frame(1, pb.Forward(), (up,)), Frame(1, done, (down,)))
    _observe(metrics, Frame(2, pb.ZeroGrad()), Frame(2, pb.Answer(failure=pb.Failure(error="InputError"))))
    value = metrics.registry.get_sample_value
    assert value("fogline_tail_operations_total", {"kind": "forward", "outcome": "done"}) == 1
    assert value("fogline_tail_operations_total", {"kind": "zero_grad", "outcome": "failed"}) == 1
    assert value("fogline_tail_compute_seconds_total") == 2
    assert value("fogline_tail_queued_seconds_total") == 0.5
    assert value("fogline_tail_tensor_bytes_total", {"direction": "received", "role": "activation"}) == 40
    assert value("fogline_tail_raw_bytes_total", {"direction": "received", "role": "activation"}) == 80
    assert value("fogline_tail_tensor_bytes_total", {"direction": "sent", "role": "output"}) == 16
