"""ReFrame's site configuration for the cluster of jobs/cluster, as an example of one: Slurm without accounting
(`squeue`, which does not tell exit codes), srun with the PMI of Open MPI ($SLURM_MPI_TYPE, pmix unless set)."""

import os

site_configuration = {
    "systems": [
        {
            "name": "virtual",
            "descr": "hosts of one machine (jobs/cluster)",
            "hostnames": ["head"],
            "partitions": [
                {
                    "name": "all",
                    "scheduler": "squeue",
                    "launcher": "srun",
                    "environs": ["builtin"],
                    "sched_options": {"use_nodes_option": True},
                }
            ],
        }
    ],
    "environments": [{"name": "builtin", "target_systems": ["*"]}],
}
os.environ.setdefault("SLURM_MPI_TYPE", "pmix")
