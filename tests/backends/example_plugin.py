"""A backend in a package of its own: it saves the captured graph, and runs it as it is."""

from autotune.backend import Availability, Configuration, Parameter, SearchSpace

PROGRAM = "program.pt2"


class ExampleBackend:
    name = "example"
    toolchain = ("torch",)
    build_uses_device = False
    build_modules = ("torch.export",)  # PreparesBuilds: imported once, ahead of all builds
    builds_slowly = False

    def probe(self, device):
        on_cpu = device.kind == "cpu"
        return Availability(works=on_cpu, reason="" if on_cpu else "it runs on CPUs only")

    def space(self, device, workload, *, has_factory):
        threads = tuple(dict.fromkeys((device.cores, max(1, device.cores // 2), 1)))
        parameters = (Parameter(name="precision", choices=("fp32", "bf16")), Parameter(name="threads", choices=threads))
        default = Configuration.of(self.name, {"precision": "fp32", "threads": threads[0]})
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))

    def build(self, model, configuration, device, folder):
        import torch

        from autotune.runtime.settings import Settings

        settings = Settings.of(configuration, model.workload)
        torch.export.save(model.program(settings.precision, device), str(folder / PROGRAM))
        settings.write(folder)

    def times_kernels_at_build(self, configuration):
        return False  # TimesKernelsAtBuild: builds run beside one another

    def times_kernels_at_load(self, configuration):
        return False

    def load(self, folder, device):
        import torch

        from autotune.runtime.artifact import read_example
        from autotune.runtime.settings import Settings
        from autotune.runtime.torch_runner import torch_runner

        module = torch.export.load(str(folder / PROGRAM)).module()
        return torch_runner(module, Settings.read(folder), device, read_example(folder))


BACKEND = ExampleBackend()
