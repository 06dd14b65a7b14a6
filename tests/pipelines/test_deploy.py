"""What ``deploy/`` holds is accepted by the schemas of those who will read it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import prefect.server.api
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

KUBERNETES = "1.34"


def test_the_work_pool_gives_a_job_that_kubernetes_accepts(repository: Path) -> None:
    pool = json.loads((repository / "deploy/kubernetes/work-pool.json").read_text())
    variables = pool["variables"]
    jsonschema.Draft7Validator.check_schema(variables)
    named = {p.name for p in find_placeholders(pool["job_configuration"])}
    assert named == set(variables["properties"]), "every variable is used, and only those"
    values = {key: v["default"] for key, v in variables["properties"].items() if "default" in v}
    values |= {"name": "run", "labels": {"a": "b"}, "command": ["prefect"], "env": []}
    filled = apply_values(pool["job_configuration"], values)
    kubernetes_validate.validate(filled["job_manifest"], KUBERNETES, strict=True)
    filled["job_manifest"]["spec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(filled["job_manifest"], KUBERNETES, strict=True)


def test_the_work_pool_has_what_prefects_own_kubernetes_worker_reads(repository: Path) -> None:
    folder = Path(prefect.server.api.__file__).parent / "collections_data" / "views"
    published = folder / "aggregate-worker-metadata.json"
    worker = json.loads(published.read_text())["prefect-kubernetes"]["kubernetes"]
    expected = worker["default_base_job_configuration"]["job_configuration"]
    pool = json.loads((repository / "deploy/kubernetes/work-pool.json").read_text())
    assert set(pool["job_configuration"]) == set(expected)


def test_the_rayjob_has_pods_that_kubernetes_accepts_and_known_fields(repository: Path) -> None:
    # KubeRay's own schema is in no Python package: fields are compared with its documentation.
    job = yaml.safe_load((repository / "deploy/kubernetes/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= {
        *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("backoffLimit", "rayClusterSpec"),
    }
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    locked = (repository / "requirements.lock").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in locked
    groups: list[dict[str, Any]] = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_ray_cluster_follows_rays_schema(repository: Path) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((repository / "deploy/ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "head_start_commands": []}, schema)


def test_the_slurm_script_is_a_shell_script(repository: Path) -> None:
    script = repository / "deploy" / "slurm.sbatch"
    assert shutil.which("bash")
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "#SBATCH --signal=B:TERM@120" in script.read_text()


def test_the_image_holds_what_it_copies(repository: Path) -> None:
    for line in (repository / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (repository / source).exists(), line
