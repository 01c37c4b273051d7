"""What digests cost: under 2 % of the time that a run takes, from images to metrics."""

from tiny_runs import CONFIG

from mvar.runs.store import Store

MOST = 0.02  # 0.2 % on two CPU cores, of the smallest run; less of any other


def test_digests_cost_next_to_nothing(making):
    """Training, drawing and measuring, with all that is hashed on the way: ids, artefacts, caches, images."""
    clock, run = making.digests, Store(making.root).run(CONFIG.run_id)
    rows = run.samples(CONFIG.evaluation_id) / "samples.npz"
    assert clock.calls > 100 and clock.num_bytes > rows.stat().st_size / 2  # that it saw them
    assert any(name.startswith("model.safetensors") for name in clock.files), clock.files
    assert any(name.startswith("samples.npz") for name in clock.files), clock.files
    assert 0 < clock.seconds < MOST * making.seconds, f"{clock.seconds:.3f} s of {making.seconds:.1f} s"
