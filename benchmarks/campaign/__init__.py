"""The cost of the driver: whole campaigns of thousands of trials whose jobs are simulated.

``python -m benchmarks.campaign.run`` drives them; see ``docs/benchmarks/campaign.md``.
"""
