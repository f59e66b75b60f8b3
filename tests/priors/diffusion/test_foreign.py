"""Other libraries' denoisers as priors, and priors in other libraries' algorithms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools import identical

from genprior.cli import main
from genprior.data import write_image
from genprior.operators.random import normal
from genprior.pretrained import load
from genprior.pretrained.loader import card
from genprior.priors import Diffusion, Gaussian, from_deepinv, to_deepinv
from genprior.priors.files import write_weights


def gaussian(size=4, channels=1):
    generator = torch.Generator().manual_seed(0)
    factors = 0.2 * normal((3, channels, size, size), generator)
    return Gaussian(torch.full((channels, size, size), 0.5), factors, residual=0.1)


def images(batch=3, channels=1, size=4):
    return normal((batch, channels, size, size), torch.Generator().manual_seed(1))


def test_sigma_in_every_form_that_deepinv_passes():
    """Would catch sigma broadcast along width, taken as a variance, or refused."""
    prior, x = gaussian(), images()
    denoiser = to_deepinv(prior)
    expected = prior.denoise(x, 0.3)
    one = torch.tensor(0.3)
    numbers = (0.3, np.float64(0.3), np.array(0.3), [0.3, 0.3, 0.3])
    for sigma in (*numbers, one, one.view(1), one.expand(3), one.expand(3, 1, 1, 1)):
        assert torch.allclose(denoiser(x, sigma), expected, atol=1e-6), sigma
    each = torch.tensor([0.1, 0.0, 0.5])
    assert identical(denoiser(x, each[:, None, None, None]), prior.denoise(x, each))
    assert torch.allclose(denoiser(x, 0.0), x, atol=1e-6)
    with pytest.raises(ValueError, match="2 noise levels came for 3 images"):
        denoiser(x, torch.tensor([0.1, 0.2]))
    with pytest.raises(TypeError, match="needs a DenoisingPrior"):
        to_deepinv(torch.nn.Identity())


def test_there_and_back():
    """Would catch an adapter that rescales pixels or noise."""
    prior, x = gaussian(), images()
    again = from_deepinv(to_deepinv(prior), (1, 4, 4), sigma_range=(1e-3, 50.0))
    sigma = torch.tensor([0.2, 0.0, 1.0])
    assert torch.allclose(again.denoise(x, sigma), prior.denoise(x, sigma), atol=1e-6)
    assert identical(again.denoise(x, 0.0), x)
    with pytest.raises(TypeError, match="saved where it is one of"):
        _ = again.config


@pytest.mark.parametrize("name", ["DRUNet", "DnCNN", "MedianFilter"])
def test_deepinv_models_serve(name):
    """Would catch a model that is handed float64, or one sigma for each image, and fails."""
    import deepinv

    with torch.random.fork_rng():
        network = {"in_channels": 1, "out_channels": 1, "pretrained": None}
        options = {
            "DRUNet": {**network, "nc": [4] * 4},
            "DnCNN": {**network, "depth": 3, "nf": 4},
            "MedianFilter": {"kernel_size": 3},
        }[name]
        model = getattr(deepinv.models, name)(**options)
    prior = from_deepinv(model, (1, None, None))
    x = 0.5 + 0.1 * images(size=16).double()
    sigma = torch.tensor([0.05, 0.0, 0.2], dtype=torch.float64)
    with torch.no_grad():
        together = prior.denoise(x, sigma)
        assert together.dtype == torch.float64
        assert identical(together[1], x[1])
        for i in (0, 2):
            alone = prior.denoise(x[i : i + 1], sigma[i].item())
            assert torch.allclose(alone[0], together[i], atol=1e-5)
            direct = model(x[i : i + 1].float(), sigma[i].item())
            assert torch.allclose(direct[0].double(), alone[0], atol=1e-5)


@pytest.mark.parametrize("name", ["DRUNet", "DnCNN", "MedianFilter"])
def test_deepinv_models_are_saved_with_their_weights(name, tmp_path):
    """Would catch a denoiser that is refused, loses its weights or ranges, or is downloaded."""
    import deepinv

    network = {"in_channels": 1, "out_channels": 1}
    options = {
        "DRUNet": {**network, "nc": [4] * 4},
        "DnCNN": {**network, "depth": 3, "nf": 4},
        "MedianFilter": {"kernel_size": 3},
    }[name]
    given = {"pretrained": None} if name != "MedianFilter" else {}
    with torch.random.fork_rng():
        model = getattr(deepinv.models, name)(**options, **given).eval()
    options = {**options, "pretrained": "download"} if given else options
    spread = {"sigma_range": (0.01, 0.6), "data_mean": (0.4,), "data_std": 0.3}
    prior = from_deepinv(model, (1, None, None), options=options, **spread)
    prior.save(tmp_path / "prior.safetensors")
    again = load(tmp_path / "prior.safetensors")
    assert (again.sigma_range, again.config) == ((0.01, 0.6), prior.config)
    assert torch.allclose(again.data_mean, prior.data_mean)
    x = 0.5 + 0.1 * images(size=16)
    with torch.no_grad():
        assert torch.allclose(again.denoise(x, 0.2), prior.denoise(x, 0.2), atol=1e-6)
    header = {"family": "DeepinvPrior", "config": {**prior.config, "denoiser": {"name": "load"}}}
    write_weights(tmp_path / "other.safetensors", {**header, "card": {}}, prior.state_dict())
    with pytest.raises(ValueError, match="no denoiser 'load'"):
        load(tmp_path / "other.safetensors")


def test_deepinv_algorithm_on_our_prior():
    """Would catch a denoiser that deepinv's own DDRM cannot use, in sigma or in range."""
    import deepinv

    prior = gaussian(size=8)
    generator = torch.Generator().manual_seed(0)
    x = prior.sample(4, generator=generator)
    mask = (torch.rand(1, 8, 8, generator=generator) > 0.5).float()
    physics = deepinv.physics.Inpainting(
        (1, 8, 8), mask=mask, noise_model=deepinv.physics.GaussianNoise(0.05)
    )
    y = (x + 0.05 * normal(x.shape, generator)) * mask
    with torch.random.fork_rng():
        torch.manual_seed(0)
        restored = deepinv.sampling.DDRM(to_deepinv(prior))(y, physics)
    # The prior has three directions, so what is seen tells nearly all of what is not.
    missing = (1 - mask).expand_as(x) > 0
    assert (restored - x)[missing].square().mean() < 0.02 * (x - 0.5)[missing].square().mean()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Small diffusers pipelines, one for each kind of prediction."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    for target in ("epsilon", "sample", "v_prediction"):
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            scheduler = DDPMScheduler(
                beta_schedule=schedule, prediction_type=target, clip_sample=False
            )
            DDPMPipeline(network, scheduler).save_pretrained(folder / f"{target}-{schedule}")
    return folder


@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_diffusers_denoises_as_its_scheduler_does(pipeline, target, schedule):
    """Would catch a label off by one, or the range [-1, 1] taken for pixels."""
    from diffusers import DDPMPipeline

    source = pipeline / f"{target}-{schedule}"
    with torch.random.fork_rng():
        theirs = DDPMPipeline.from_pretrained(source)
    prior = Diffusion.from_diffusers(source)
    for t in (0, 200, 900):
        kept = theirs.scheduler.alphas_cumprod[t]
        noisy = images(2, 1, 8)
        with torch.no_grad():
            output = theirs.unet(noisy, t).sample
            clean = theirs.scheduler.step(
                output, t, noisy, generator=torch.Generator()
            ).pred_original_sample
            # Their x_t in [-1, 1] units, as x0 + sigma n in pixels.
            x = noisy / kept.sqrt() / 2 + 0.5
            got = prior.denoise(x.double(), ((1 - kept) / kept).sqrt().item() / 2)
        error = (got - (clean + 1) / 2).abs().max()
        assert error < 1e-3 * x.abs().max(), t


def test_diffusers_prior_is_saved_with_its_weights(pipeline, tmp_path):
    """Would catch a file that needs diffusers' folder again, or forgets the schedule."""
    prior = Diffusion.from_diffusers(str(pipeline / "v_prediction-scaled_linear"))
    prior.save(tmp_path / "prior.safetensors")
    again = Diffusion.load(tmp_path / "prior.safetensors").eval()
    assert again.config == prior.config
    x = images(2, 1, 8)
    assert torch.allclose(again.denoise(x, 0.4), prior.denoise(x, 0.4), atol=1e-6)


def test_diffusers_come_in_every_form(pipeline, tmp_path):
    """Would catch an object, a network alone or a folder that is refused, changed or misread."""
    from diffusers import DDPMPipeline, UNet2DModel

    source, x = pipeline / "epsilon-scaled_linear", images(2, 1, 8)
    with torch.random.fork_rng():
        whole = DDPMPipeline.from_pretrained(source)
        network = UNet2DModel.from_pretrained(source, subfolder="unet").train()
    expected = Diffusion.from_diffusers(source)
    alone = tmp_path / "alone"
    shutil.copytree(source / "unet", alone)
    with pytest.raises(ValueError, match=r"without the noise schedule.*pass scheduler="):
        Diffusion.from_diffusers(network)
    with pytest.raises(ValueError, match=r"pass scheduler=, a DDPMScheduler"):
        load(alone)
    with pytest.raises(ValueError, match="has no UNet2DModel"):
        Diffusion.from_diffusers(torch.nn.Identity())
    found = [
        Diffusion.from_diffusers(whole),
        Diffusion.from_diffusers(network, scheduler=whole.scheduler),
        Diffusion.from_diffusers(alone, scheduler=source / "scheduler"),
        load(source),
    ]
    assert network.training
    shutil.copytree(source / "scheduler", alone / "scheduler")
    for prior in [*found, load(alone)]:
        assert prior.image_shape == (1, 8, 8)
        assert torch.allclose(prior.eval().denoise(x, 0.4), expected.denoise(x, 0.4), atol=1e-6)


def test_shell_takes_a_folder_of_diffusers(pipeline, tmp_path, capsys):
    """Would catch a folder that the shell calls no weights file, or a result without its hash."""
    source = pipeline / "epsilon-linear"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "photo.png")
    words = ["restore", str(tmp_path / "photo.png"), "--task", "denoise", "--sigma", "0.1"]
    words += ["--steps", "2", "--samples", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--prior", str(source)]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["weights_sha256"] == card(source)["sha256"]
    assert main([*words, "--prior", str(tmp_path), "--force"]) == 2
    assert "no folder of diffusers" in capsys.readouterr().err


def test_weights_that_name_a_network_elsewhere(pipeline, tmp_path):
    """Would catch a weights file that makes the reader open a folder or ask a hub."""
    source = pipeline / "epsilon-linear"
    prior = Diffusion.from_diffusers(source)
    for options in (str(source / "unet"), "someone/something", None, []):
        network = {**prior.config["network"], "options": options}
        path = tmp_path / "prior.safetensors"
        header = {"family": "Diffusion", "config": {**prior.config, "network": network}}
        write_weights(path, {**header, "card": {}}, prior.state_dict())
        with pytest.raises(ValueError, match="must be a table"):
            Diffusion.load(path)


def unet(**options):
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8,)}
    given = {"sample_size": 8, "in_channels": 1, "out_channels": 1, **sizes, **blocks, **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**given)


def test_models_of_which_a_part_or_an_object_is_given(tmp_path):
    """Would catch objects that are refused, or changed, and a U-Net's folder without a hint."""
    from diffusers import DDPMPipeline, DDPMScheduler

    network, scheduler = unet().train(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    x = images(2, 1, 8)
    whole = Diffusion.from_diffusers(DDPMPipeline(network, scheduler))
    parts = Diffusion.from_diffusers(network, scheduler=scheduler)
    network.save_pretrained(tmp_path / "alone")
    scheduler.save_pretrained(tmp_path / "scheduler")
    files = Diffusion.from_diffusers(tmp_path / "alone", scheduler=tmp_path / "scheduler")
    assert network.training
    assert parts.network.network is not network
    for prior in (whole, parts, files):
        assert prior.training_objective.schedule == "cosine"
        assert torch.allclose(prior.denoise(x, 0.4), whole.denoise(x, 0.4), atol=1e-6)
    for alone in (network, tmp_path / "alone"):
        with pytest.raises(ValueError, match=r"without the noise schedule .* pass scheduler="):
            Diffusion.from_diffusers(alone)
    with pytest.raises(ValueError, match=r"neither unet/config.json nor config.json"):
        Diffusion.from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="has no UNet2DModel"):
        Diffusion.from_diffusers(torch.nn.Identity(), scheduler=scheduler)


def test_learned_variance_is_left_out():
    """Would catch six channels taken for an image of three, which fails at the first step."""
    from diffusers import DDPMScheduler

    network = unet(out_channels=2)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    prior = Diffusion.from_diffusers(network, scheduler=scheduler)
    noisy, t = images(2, 1, 8), 300
    kept = scheduler.alphas_cumprod[t]
    output = network.eval()(noisy, t).sample
    clean = scheduler.step(output, t, noisy, generator=torch.Generator()).pred_original_sample
    x, sigma = noisy / kept.sqrt() / 2 + 0.5, ((1 - kept) / kept).sqrt().item() / 2
    assert (prior.denoise(x, sigma) - (clean + 1) / 2).abs().max() < 1e-4
    with pytest.raises(ValueError, match="makes 3 channels of 1"):
        Diffusion.from_diffusers(unet(out_channels=3), scheduler=scheduler)


def test_trained_betas_are_those_of_the_model(tmp_path):
    """Would catch a schedule of one's own replaced by the linear one, in silence."""
    from diffusers import DDPMScheduler

    betas = np.linspace(0.002, 0.03, 50)
    scheduler = DDPMScheduler(50, trained_betas=betas.tolist(), clip_sample=False)
    prior = Diffusion.from_diffusers(unet(), scheduler=scheduler)
    kept = scheduler.alphas_cumprod.double()
    assert torch.allclose(prior.training_objective.levels(), (1 / kept - 1).sqrt(), rtol=1e-4)
    prior.save(tmp_path / "prior.safetensors")
    assert Diffusion.load(tmp_path / "prior.safetensors").config == prior.config


def test_schedulers_of_other_noise_are_refused():
    """Would catch a variance-exploding or flow-matching model read as one of linear betas."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler

    for scheduler in (ScoreSdeVeScheduler(), FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ValueError, match="known are linear"):
            Diffusion.from_diffusers(unet(), scheduler=scheduler)


def test_a_folder_serves_where_a_prior_is_named(tmp_path, monkeypatch, capsys):
    """Would catch the shell sending a pipeline's folder away."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    gaussian(8).save(tmp_path / "prior.safetensors")
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", gaussian(8).sample(1, generator=torch.Generator())[0].clamp(0, 1))
    words = ["restore", "photo.png", "--task", "denoise", "--sigma", "0.1", "--samples", "1"]
    assert main([*words, "--prior", "pipeline", "--steps", "2", "--out", "a"]) == 0
    assert len(json.loads(Path("a/result.json").read_text())["weights_sha256"]) == 64
    assert main([*words, "--prior", ".", "--out", "b"]) == 0  # as training leaves a folder
    Path("empty").mkdir()
    assert main([*words, "--prior", "empty", "--out", "c"]) == 2
    assert "--prior empty is no folder of diffusers" in capsys.readouterr().err


def test_conditional_diffusers_models_are_refused():
    """Would catch a class-conditional model silently run without its class."""
    from diffusers import DDPMScheduler

    with pytest.raises(ValueError, match="conditional on a class"):
        Diffusion.from_diffusers(unet(num_class_embeds=10), scheduler=DDPMScheduler())
