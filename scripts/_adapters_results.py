"""The files of tasks that the adapter programs write."""

import json

from jaxpapers import adapters


def save_tasks(folder, config, problem, trained, rows) -> None:
  """Writes the parameters of each member, with all that serving needs."""
  for i, member in enumerate(trained.members):
    adapters.save_task(
      folder / f'task_{member.seed}.safetensors',
      trained.of(i),
      metadata={
        'task': config.task,
        'kind': problem.goal.kind,
        'classes': list(problem.goal.classes),
        'mode': config.mode,
        'config': json.loads(config.to_json_best_effort()),
        'scores': rows[i],
      },
    )
