"""Steps that look at a captured graph as a backend sees it: what it finds there, and which kernels it would need."""

from autotune import registry
from autotune.execute.answers import FeaturesAnswer, ProblemCount, ProblemsAnswer
from autotune.execute.channel import Channel
from autotune.execute.requests import FeaturesRequest, ProblemsRequest
from autotune.execute.stages import building


def features(request: FeaturesRequest, channel: Channel) -> FeaturesAnswer:
    """Return how often each of the named backends finds something in the captured graph, as ``backend.feature``."""
    from autotune.model.source import CapturedModel

    device, features_by_name = request.device, dict[str, int]()
    with building(channel, device):
        model = CapturedModel(request.folder)
        for name, backend in registry.finding_features(request.backends).items():
            counts = backend.graph_features(model, device)
            features_by_name.update({f"{name}.{feature}": count for feature, count in counts.items()})
    return FeaturesAnswer(features=features_by_name)


def problems(request: ProblemsRequest, channel: Channel) -> ProblemsAnswer:
    """Return the kernel problems of the graph that a configuration builds, each with its number in one call."""
    from autotune.model.source import CapturedModel

    configuration, device = request.configuration, request.device
    backend = registry.kernel_tuner(configuration.backend)
    with building(channel, device):
        counts = backend.kernel_problems(CapturedModel(request.folder), configuration, device)
    return ProblemsAnswer(problems=tuple(ProblemCount(problem=problem, count=n) for problem, n in counts.items()))
