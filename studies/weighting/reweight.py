"""Learning to reweight: samples count as far as their gradient helps on a few clean images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from studies.lab.data import TensorData
from studies.weighting.scheme import Scheme, Setup, StepView, to_mean_one

Parameters = dict[str, Tensor]


def reweight(setup: Setup) -> Scheme:
    """Each sample of a step counts w_i ∝ max(u_i, 0), u_i = ∇ℓ_i · ∇L_val.

    u_i = −∂/∂ε_i L_val(θ − Σ_j ε_j ∇ℓ_j) at ε = 0, so it is the gradient alignment with the clean
    validation images exactly, and no step need be taken.

    Cost: a forward and backward pass over the validation images, and over the batch a forward pass,
    a backward pass, and one through that.

    Args:
        setup: What is trained on, and the validation images.

    Returns:
        The scheme.

    Reference:
        Ren et al., ICML 2018, Sec. 3.2 and 3.3 (Algorithm 1, eq. 12).
    """
    network = setup.build_model(setup.recipe.seed)

    def weights(view: StepView) -> Tensor:
        theta = parameters_of(view.model)
        direction = validation_gradient(network, theta, setup.validation)
        batch = TensorData(view.images, view.labels)
        return to_mean_one(alignment(network, theta, batch, direction).clamp(min=0))

    return Scheme(weights)


def parameters_of(model: nn.Module) -> Parameters:
    """The parameters of a model without their graph, by name.

    Args:
        model: The model.

    Returns:
        Tensors that share memory with the parameters.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def alignment(
    network: nn.Module, theta: Parameters, batch: TensorData, direction: Parameters
) -> Tensor:
    """∇ℓ_i(θ) · v for every sample of a batch, by a backward pass through a backward pass.

    Σ_i c_i ∇ℓ_i is linear in c, and its derivative along v is what is asked for. (One pass with
    forward-mode tangents gives the same; torch warns of its own deprecated parts there.)

    Args:
        network: A network of that build; its own parameters are not looked at.
        theta: Parameters θ.
        batch: Images and labels.
        direction: The vector v, by parameter.

    Returns:
        Shape (N,).
    """
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    ones = torch.ones(len(batch), requires_grad=True)
    losses = _losses(network, leaves, batch)
    summed = torch.autograd.grad(losses, list(leaves.values()), ones, create_graph=True)
    (dots,) = torch.autograd.grad(summed, ones, [direction[name] for name in leaves])
    return dots


def validation_gradient(
    network: nn.Module, theta: Parameters, validation: TensorData
) -> Parameters:
    """Gradient of the mean loss of the validation images.

    Args:
        network: A network of that build.
        theta: Parameters θ at which it is taken.
        validation: Images and true labels.

    Returns:
        The gradient, by parameter.
    """
    found: Parameters = grad(lambda p: _losses(network, p, validation).mean())(theta)
    return found


def weighted_gradient(
    network: nn.Module, theta: Parameters, batch: TensorData, weights: Tensor
) -> Parameters:
    """Σ_i w_i ∇ℓ_i(θ).

    Args:
        network: A network of that build.
        theta: Parameters θ.
        batch: Images and labels.
        weights: Shape (N,).

    Returns:
        The gradient, by parameter.
    """
    found: Parameters = grad(lambda p: (weights * _losses(network, p, batch)).sum())(theta)
    return found


def _losses(network: nn.Module, theta: Parameters, data: TensorData) -> Tensor:
    logits = functional_call(network, theta, (data.images,))
    return F.cross_entropy(logits, data.labels, reduction="none")
