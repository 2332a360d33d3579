"""The deployment file: it fits Ray Serve's schema, listens on loopback, downloads nothing and logs no rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "infra" / "deploy" / "vllm.yaml"

SCHEMA = """
import sys, yaml
try:
    from ray.serve.schema import ServeDeploySchema
except ImportError as error:
    print(error); sys.exit(77)
config = yaml.safe_load(open(sys.argv[1]))
ServeDeploySchema.model_validate(config)
from ray.serve.config import AutoscalingConfig
AutoscalingConfig(**config["applications"][0]["args"]["llm_configs"][0]["deployment_config"]["autoscaling_config"])
"""


def test_it_is_local_and_offline():
    config = yaml.safe_load(FILE.read_text())
    assert config["http_options"]["host"] == "127.0.0.1" and config["proxy_location"] == "HeadOnly"
    assert config["logging_config"]["enable_access_log"] is False
    [app] = config["applications"]
    for model in app["args"]["llm_configs"]:
        assert model["model_loading_config"]["model_source"].startswith("/")
        assert model["engine_kwargs"]["trust_remote_code"] is False
        assert model["runtime_env"]["env_vars"]["HF_HUB_OFFLINE"] == "1"


def test_it_fits_the_schema_of_ray_serve():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCHEMA, str(FILE)], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"Ray Serve is not installed here (pip install 'ray[serve]'): {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr[-2000:]
