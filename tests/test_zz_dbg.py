def test_x(trained, tmp_path):
    import torch
    from radvision_utils.export import export_run
    from radvision_utils import export
    export.TOLERANCE = 9
    print("CHECK", export_run(trained, tmp_path/'g')["check"], torch.get_float32_matmul_precision(), trained.seed)
    from radvision_utils.runs import RunFolder
    for n in (1,2,3):
        r=RunFolder.of(trained).record(f"stage{n}"); print("REC", n, r["hash"], r["dtype"], r["validation_loss"], r["resumed_from"], r["memory_events"])
