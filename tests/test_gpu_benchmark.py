"""The arithmetic of `benchmarks/gpu.py` and of the count of passes."""

import pytest

from divax.benchmarks import gpu
from divax.benchmarks.hlo_traffic import traffic

AT = gpu.Shape(tokens=8192, width=2048, target_width=4096, vocabulary=128256)


def test_the_first_name_that_a_kind_contains_counts():
    assert gpu.roofline("NVIDIA H200") == (4.8e12, 989e12)
    assert gpu.roofline("NVIDIA H100 PCIe") == (2.0e12, 756e12)
    assert gpu.roofline("NVIDIA H100 80GB HBM3") == (3.35e12, 989e12)
    assert gpu.roofline("cpu") is None


def test_rates():
    # 2·8192·128256·(3·2048 + 4096) products and sums; five passes over 2·8192·128256 bytes.
    assert gpu.least_flops(AT) == 21_517_786_152_960
    assert gpu.least_bytes(AT, "kl") == 5 * 8192 * 128256 * 2
    assert gpu.achieved("fused kl/fast", 0.043035572, AT, gpu.Roofline(1, 1e15)) == (
        "500 TFLOP/s, 50% of the peak"
    )
    assert gpu.achieved("given kl/divax", 0.01, AT, None) == "1.05 TB/s"


HLO = """HloModule m

%fused_slice (p: bf16[4,100]) -> f32[4,10] {
  %p = bf16[4,100]{1,0} parameter(0)
  %c = f32[4,100]{1,0} convert(%p)
  ROOT %s = f32[4,10]{1,0} slice(%c), slice={[0:4], [0:10]}
}

%fused_all (q: bf16[4,100], r: f32[4,10]) -> f32[4] {
  %q = bf16[4,100]{1,0} parameter(0)
  %r = f32[4,10]{1,0} parameter(1)
  ROOT %t = f32[4]{0} custom-call(%q, %r)
}

ENTRY %main (x: bf16[4,100]) -> f32[4] {
  %x = bf16[4,100]{1,0} parameter(0)
  %few = f32[4,10]{1,0} fusion(%x), kind=kLoop, calls=%fused_slice
  ROOT %all = f32[4]{0} fusion(%x, /*index=1*/%few), kind=kInput, calls=%fused_all
}
"""


def test_traffic_of_slices_is_that_of_the_slices():
    # The slice is read as bfloat16, 80 bytes, and written as float32; then 800 + 160 bytes are read and 16 written.
    assert traffic(HLO) == 80 + 160 + 800 + 160 + 16


def test_without_a_gpu_there_is_one_line(capsys):
    import jax

    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert gpu.main(["--quick"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks/gpu.py: error: no GPU")
