"""A flow inside a VAE: exact where flow and decoder are affine, e is the latent of solvers."""

import pytest
import torch
from tools import identical, linear_vae, pose, randn, seeded

from genprior.commands.run import begin_with
from genprior.operators import Inpainting
from genprior.priors import VAE, Gaussian, HierarchicalVAE, Turn, testing
from genprior.priors.flows.vectors import VectorFlow
from genprior.solvers import LatentMAP

SHAPE = (1, 4, 3)
FLOW = {"couplings": 3, "hidden": [8]}
SMALL = {"network": {"hidden": [8], "activation": "tanh"}, "flow": FLOW}


def stirred(flow, names=""):
    """Move the parameters whose names end so off their start."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(flow.named_parameters()):
            if name.endswith(names):
                parameter += 0.2 * randn(*parameter.shape, seed=i + 10)
    return flow


def affine_vae():
    """A linear VAE with z = M e + c, and its q(z | x), which is the posterior; c and M too.

    Only biases of the couplings are moved, so they scale and shift. W is chosen to make the
    precision M^-T M^-1 + W^T W / s^2 of the posterior diagonal.
    """
    vae = VAE(SHAPE, 4, network={"hidden": []}, pixels=linear_vae().pixels.config, flow=FLOW)
    vae.double().requires_grad_(False)
    stirred(vae.flow, ("bias", "log_scale", "lower", "upper", "log_bound"))
    (encoder, decoder), s = (vae.encoder[1], vae.decoder[0]), vae.decoder_std
    c = vae.flow.inverse(torch.zeros(1, 4).double()).flatten()
    m = (vae.flow.inverse(torch.eye(4).double()).flatten(1) - c).T
    precision = torch.linalg.inv(m @ m.T)
    whole = torch.linalg.eigvalsh(precision)[-1] + torch.tensor([9.0, 99, 199, 299]).double()
    root = torch.linalg.cholesky(whole.diag() - precision)
    decoder.weight.copy_(s * torch.linalg.qr(randn(12, 4)).Q @ root.T)
    decoder.bias.copy_(torch.linspace(0.3, 0.7, 12))
    gain = decoder.weight.T / s**2 / whole[:, None]
    encoder.weight[:4], encoder.weight[4:] = gain, 0
    encoder.bias[:4] = precision @ c / whole - gain @ decoder.bias
    encoder.bias[4:] = -0.5 * whole.log()
    return vae, c, m


def as_gaussian(vae, c, m):
    """The distribution N(W c + b, W M M^T W^T + s^2 I) of its images."""
    weight, bias = vae.decoder[0].weight, vae.decoder[0].bias
    factors = (weight @ m).T.reshape(-1, *SHAPE)
    mean = (weight @ c + bias).view(SHAPE)
    return Gaussian(mean, factors, residual=float(vae.decoder_std))


def test_bounds_are_exact_where_flow_and_decoder_are_affine():
    """Catches a wrong sign or term of log p(z): with q = p(z | x) every draw gives log p(x)."""
    vae, c, m = affine_vae()
    gaussian = as_gaussian(vae, c, m)
    x = gaussian.sample(5, generator=seeded())
    exact = gaussian.log_prob(x)
    assert abs(float(torch.linalg.slogdet(m).logabsdet)) > 0.1  # the volume counts
    terms = vae.terms(x, samples=3, generator=seeded(1))
    draws = terms.log_likelihood + terms.log_ratio
    torch.testing.assert_close(draws, exact[:, None].expand(-1, 3), atol=1e-9, rtol=0)
    estimate = vae.log_prob_estimate(x, samples=7, generator=seeded(), at_once=3)
    torch.testing.assert_close(estimate, exact)
    for closed in (True, False):
        bound = vae.elbo(x, samples=2, closed_kl=closed, generator=seeded(2))
        torch.testing.assert_close(bound, exact)
    loss, _ = vae.objective().loss(Turn(), x, seeded(3))
    torch.testing.assert_close(loss, -exact.mean() / 12)


def test_the_kl_is_that_of_two_gaussians():
    """Catches a KL to N(0, I), or to e's and not z's distribution."""
    vae, c, m = affine_vae()
    x = as_gaussian(vae, c, m).sample(4, generator=seeded())
    vae.encoder[1].bias[4:] += 0.5
    mean, std = vae.encode_distribution(x)
    q = torch.distributions.MultivariateNormal(mean, scale_tril=std.diag_embed())
    p = torch.distributions.MultivariateNormal(c, m @ m.T)
    terms = vae.terms(x, samples=20_000, generator=seeded(1))
    error = terms.log_ratio.std(1) / 20_000**0.5
    exact = torch.distributions.kl_divergence(q, p)
    assert ((terms.kl[:, 0] - exact).abs() <= 5 * error).all()


def test_solvers_see_the_flow_s_base():
    """Catches z handed to solvers for e: the mode is then not the exact posterior's mean."""
    vae, c, m = affine_vae()
    gaussian = as_gaussian(vae, c, m)
    mask = torch.rand(3, 1, 4, 3, generator=seeded()) < 0.5
    problem = pose(Inpainting(mask), SHAPE)
    found = LatentMAP(tolerance=1e-9)(problem, vae)
    exact = gaussian.posterior(problem).mean
    torch.testing.assert_close(found.mean, exact, atol=1e-6, rtol=0)


def test_contract(device):
    """Catches broken promises: purity, row independence, files, devices, generators."""
    vae = VAE(SHAPE, 3, **SMALL)
    stirred(vae.flow)
    testing.check_prior(vae, device=device)
    testing.check_bijection(stirred(VectorFlow(5, **FLOW)), (5, 1, 1))


def test_training_the_flow_alone(tmp_path):
    """Catches networks that move too, a flow that starts as more than a rotation, and one that
    learns nothing: latents of this decoder are two points, of which N(0, I) knows nothing."""
    path = tmp_path / "trained.safetensors"
    plain = VAE(SHAPE, 2, network={"hidden": []}, pixels={"std": 0.05, "learned": False})
    with torch.no_grad():
        plain.encoder[1].weight.mul_(4)
        plain.encoder[1].bias[2:] = -2
    plain.save(path)
    x = torch.rand(2, *SHAPE, generator=seeded()).repeat(32, 1, 1, 1)
    vae = VAE(
        SHAPE, 2, network={"hidden": []}, pixels={"std": 0.05, "learned": False}, flow=FLOW,
        bound={"flow_only": True},
    )  # fmt: skip
    begin_with(vae, str(path))
    first = [v.elbo(x, samples=50, closed_kl=False, generator=seeded()) for v in (plain, vae)]
    torch.testing.assert_close(*first, atol=1e-3, rtol=1e-5)
    objective = vae.objective()
    optimizer = torch.optim.Adam(objective.parameters("all"), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        objective.loss(Turn(step=step), x, seeded(step))[0].backward()
        optimizer.step()
    for name, weight in plain.state_dict().items():
        assert identical(vae.state_dict()[name], weight), name
    gain = vae.elbo(x, samples=50, generator=seeded()) - first[1]
    assert gain.mean() > 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VAE(SHAPE, 1, flow={}), "2 numbers or more"),
        (lambda: VAE(SHAPE, 2, flow={"couplings": 0}), "couplings"),
        (lambda: VAE(SHAPE, 2, flow={"depth": 2}), "flow has no option 'depth'"),
        (lambda: VAE(SHAPE, 2, bound={"flow_only": True}).objective(), "flow_only"),
        (lambda: HierarchicalVAE((1, 8, 8), bound={"flow_only": True}).objective(), "flow_only"),
    ],
)
def test_bad_input_is_refused(make, match):
    """Catches arguments that fail late or silently."""
    with pytest.raises(ValueError, match=match):
        make()
