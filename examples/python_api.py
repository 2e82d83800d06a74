"""Builds an experiment in code, runs it, and reads its histories as arrays."""

from fedgen import Experiment, run

experiment = Experiment(
    data={"clients": 50},
    training={"optimizer": {"name": "sgd", "lr": 0.2}, "epochs": 2},
    federation={"rounds": 30, "cohort": 0.2, "server_optimizer": {"name": "sgd", "momentum": 0.9}},
)
result = run(experiment)
accuracy, chosen = result.history["accuracy"], result.history["validation_accuracy"].argmax()  # float64[rounds]
print(f"{result.state}: accuracy {accuracy[-1]:.3f}, {accuracy[chosen]:.3f} in round {chosen}, chosen by validation")
