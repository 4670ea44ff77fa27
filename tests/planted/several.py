"""Mistakes in what processes share, in a batch that comes in parts, and in how a step is computed."""

from tests.planted import Plant

ALONE, GROUP = "tests/machine/test_distributed.py", "tests/machine/test_distributed.py -k a_group"
BALANCED, OTHER = (
    f"tests/machine/test_several_processes.py -k 'with_parts and {name}'" for name in ("balanced", "other")
)
ENDS, PARTS, ENGINE = "tests/machine/test_ends_of_several.py", "tests/engine/test_accumulate.py", "tests/engine"

PLANTS = [
    # ---- sums over processes ----
    Plant(
        "dida/method/bank.py",
        "the bank learns from the images of its own process",
        "embed_BDhw, label_BHW = rng.world.gather(embed_BDhw), rng.world.gather(label_BHW)",
        "embed_BDhw, label_BHW = embed_BDhw.clone(), label_BHW.clone()",
        BALANCED,
    ),
    Plant(
        "dida/method/prior.py",
        "class shares are those of one process",
        "        count_C = self.world.sum(count_C)\n",
        "",
        OTHER,
    ),
    Plant(
        "dida/method/discrimination.py",
        "pixels weigh by the classes of one process",
        "        count_C = self.world.sum(count_C)\n",
        "",
        BALANCED,
    ),
    Plant(
        "dida/method/teacher.py",
        "the weight of pseudo-labels is the share of one process",
        "(world.sum(found_BHW.sum(dims, keepdim=True)) for",
        "(found_BHW.sum(dims, keepdim=True) for",
        GROUP,
    ),
    Plant(
        "dida/machine/distributed.py",
        "a mean over processes is their sum",
        "return self.sum(x) / self.size",
        "return self.sum(x)",
        GROUP,
    ),
    Plant(
        "dida/machine/distributed.py",
        "processes weigh alike, however many pixels they have",
        "return mean * torch.where(others > 0, mine / others, 0.0)",
        "return mean",
        GROUP,
    ),
    Plant(
        "dida/machine/distributed.py",
        "checksums do not see that numbers changed places",
        "(words * (torch.arange(len(words), device=words.device) % 65_521 + 1)).sum()",
        "words.sum()",
        GROUP,
    ),
    Plant(
        "dida/models/whole_batch.py",
        "the gradient of a norm's statistics is that of one process",
        "return ctx.world.mean(gradient), None",
        "return gradient, None",
        GROUP,
    ),
    # ---- gradients ----
    Plant(
        "dida/method/replicas.py",
        "gradients are added up where they should be averaged",
        "    own: tuple[Callable[..., Any], ...] = (",
        "    dist = nn.parallel.distributed.dist\n"
        "    shared.register_comm_hook(None, lambda _, bucket: dist.all_reduce(bucket.buffer(), async_op=True)"
        ".get_future().then(lambda done: done.value()[0]))\n"
        "    own: tuple[Callable[..., Any], ...] = (",
        BALANCED,
    ),
    Plant(
        "dida/method/replicas.py",
        "gradients are averaged before the last pass",
        "is_last=each is own[-1]",
        "is_last=each is own[0]",
        BALANCED,
    ),
    Plant(
        "dida/step.py",
        "the optimizer has gone before the gradient is clipped",
        "    gradient = method.clip_gradient(state.student)  # its norm, before it is clipped\n"
        "    state.optimizer.step()\n",
        "    state.optimizer.step()\n    gradient = method.clip_gradient(state.student)\n",
        f"{ENGINE}/test_step.py -k clipped",
    ),
    Plant(
        "dida/optim.py",
        "a part of the gradient is not clipped",
        "clip_grads_with_norm_(model.parameters(),",
        "clip_grads_with_norm_(list(model.parameters())[1:],",
        f"{ENGINE}/test_optim.py -k scaled",
    ),
    Plant(
        "dida/precision.py",
        "the copies in bfloat16 keep their first weights",
        "        torch._foreach_copy_(self._cast, self._own)\n",
        "",
        f"{ENGINE}/test_precision.py -k cast_before",
    ),
    # ---- draws ----
    Plant(
        "dida/method/views.py",
        "every process draws what the first one draws",
        "return self.world.mine(torch.rand(whole, generator=self.device, device=device), images)",
        "return torch.rand(shape, generator=self.device, device=device)",
        f"{ALONE} -k draw",
    ),
    Plant(
        "dida/data/loader.py",
        "every process reads the samples of the first one",
        "return self._world.mine(self._samples[batch * self._batch_size :][: self._batch_size])[place]",
        "return self._samples[batch * self._batch_size :][place]",
        f"{ALONE} -k samples",
    ),
    # ---- parts of a batch ----
    Plant(
        "dida/models/in_parts.py",
        "all parts have the draws of the first",
        "        self._turns.take(part)\n",
        "",
        f"{PARTS} -k 'a_part_is_seen or parts_are_the_batch'",
    ),
    Plant(
        "dida/models/in_parts.py",
        "parts draw one behind the other",
        "with kept if part < self.parts - 1 else nullcontext():",
        "with nullcontext():",
        f"{PARTS} -k 'a_part_is_seen or parts_are_the_batch'",
    ),
    Plant(
        "dida/models/in_parts.py",
        "batch norm remembers a part twice",
        "return nullcontext(), unremembered(self.network)",
        "return nullcontext(), nullcontext()",
        f"{PARTS} -k remembers",
    ),
    Plant(
        "dida/models/in_parts.py",
        "parts of every process have the draws of those of the first",
        "world.rank * parts, world.rank * parts, world.size * parts",
        "0, 0, world.size * parts",
        f"{PARTS} -k turns",
    ),
    Plant(
        "dida/assemble.py",
        "parts of a joined run draw for one process",
        "state.working = parts.arithmetic.working(state.student, state.teacher, world)",
        "state.working = parts.arithmetic.working(state.student, state.teacher)",
        BALANCED,
    ),
    # ---- what is written, and scored ----
    Plant(
        "dida/machine/distributed.py",
        "the last process writes, not the first",
        "return self.rank == 0",
        "return self.rank == self.size - 1",
        f"{ENDS} -k one_process_writes",
    ),
    Plant(
        "dida/use/evaluate.py",
        "processes that lack a picture score the first ones again",
        "order = range(world.rank, len(images), world.size)",
        "order = [i % len(images) for i in range(world.rank, -(-len(images) // world.size) * world.size, world.size)]",
        f"{ENDS} -k pictures_are_shared",
    ),
]
