"""Jobs with a mistake, and the lines that a user sees."""

# ruff: noqa: E501

GOOD = """name: t
data: digits
storage: {storage}
train: {{input_size: 32, width: 0.1, epochs: 1}}
stages:
  a: {{net: A, scale: 32}}
  e: {{net: E, scale: [32, 48], init: {{from: a}}}}
evaluations:
  t: {{models: [e]}}
"""


# What is replaced in the good job, by what, and the line that a user sees.
ERRORS = [
    ("epochs: 1", "epoks: 1", ["job.yaml:4:37: train.epoks: unknown key; did you mean epochs?"]),
    ("epochs: 1", "epochs: many", ["job.yaml:4:45: train.epochs: expected a whole number of 1 or more, not 'many'"]),
    ("width: 0.1", "width: yes", ["job.yaml:4:32: train.width: expected a number above 0, not true"]),
    ("net: A", "net: F", ["job.yaml:6:12: stages.a.net: expected A, A-LRN, B, C, D or E, not 'F'"]),
    ("net: A, ", "", ["job.yaml:6:3: stages.a.net: is missing; expected A, A-LRN, B, C, D or E"]),
    ("from: a", "from: aa", ["job.yaml:7:45: stages.e.init.from: no stage is called 'aa'; did you mean a?"]),
    (
        "scale: 32}}",
        "scale: 32, init: {{from: e}}}}",
        ["job.yaml:6:3: stages.a: stages wait for each other: a <- e <- a"],
    ),
    ("scale: 32}}", "scale: 31}}", ["job.yaml:6:22: stages.a.scale: S = 31 is smaller than the crop, input_size = 32"]),
    (
        "scale: 32}}",
        "scale: big}}",
        ["job.yaml:6:22: stages.a.scale: expected a number of pixels, or [smallest, largest], not 'big'"],
    ),
    ("[32, 48]", "[48, 32]", ["job.yaml:7:22: stages.e.scale: the smallest S (48) is above the largest (32)"]),
    (
        "scale: 32}}",
        "scale: 32, width: 0.2}}",
        ["job.yaml:7:45: stages.e.init.from: width is 0.2 in stage a and 0.1 in this one: the layers do not fit"],
    ),
    ("models: [e]", "models: [f]", ["job.yaml:9:16: evaluations.t.models.0: no stage is called 'f'; there are a, e"]),
    (
        "models: [e]",
        "models: [e], scales: [16]",
        ["job.yaml:9:29: evaluations.t.scales.0: Q = 16 is smaller than the input_size of e, 32"],
    ),
    ("name: t", "nam: t", ["job.yaml:1:1: nam: unknown key; did you mean name?"]),
    ("name: t\n", "name: t\nname: u\n", ["job.yaml:2:1: name: stands twice, first in line 1"]),
    ("width: 0.1", "width: 0.1, virtual_shards: 6", ["job.yaml:4:53: train.virtual_shards: 6 is not a power of two"]),
    (
        "width: 0.1",
        "width: 0.1, batch_norm: yes, micro_batch: 4",
        [
            "job.yaml:4:67: train.micro_batch: with reproducible: exact or batch_norm, virtual shards are what is computed at a time; for smaller ones raise virtual_shards"
        ],
    ),
    (
        "epochs: 1",
        "epochs: 1, reproducible: exact, exchange_precision: bf16",
        [
            "job.yaml:4:89: train.exchange_precision: sums of exact training are float32's; it does not go with reproducible: exact"
        ],
    ),
    (
        "epochs: 1}}\n",
        "epochs: 1, reproducible: exact}}\ncluster: {{workers: 3}}\n",
        [
            "job.yaml:4:62: train.reproducible: exact training takes a power of two of workers, at most virtual_shards (8); 3 cannot share them evenly"
        ],
    ),
    (
        "input_size: 32",
        "input_size: 33",
        [
            "job.yaml:4:21: train.input_size: 33 is not a multiple of 32",
            "job.yaml:6:22: stages.a.scale: S = 32 is smaller than the crop, input_size = 33",
            "job.yaml:7:22: stages.e.scale: S = 32 is smaller than the crop, input_size = 33",
        ],
    ),
    ("[32, 48]", "[32, 48", ["job.yaml:7:46: not YAML: expected ',' or ']', but got '}'"]),
    ("name: t", "name: &a [*a]", ["job.yaml:1:7: name.0: an alias of what it stands in"]),
    ("width: 0.1", "width: .inf", ["job.yaml:4:32: train.width: expected a number above 0, not .inf"]),
    (
        "  t: {{",
        '  "S=256 (dense)": {{',
        [
            "job.yaml:9:3: evaluations.S=256 (dense): expected at most 100 letters, digits, points, hyphens and underscores, the first a letter or digit"
        ],
    ),
    (
        "storage: {storage}",
        "storage: runs",
        [
            "job.yaml:3:10: storage: runs: expected a whole path (from / or ~) of a folder that all nodes share, or a URI"
        ],
    ),
    (
        "storage: {storage}",
        "storage: /etc/passwd/no",
        [
            "job.yaml:3:10: storage: /etc/passwd/no/runs/t cannot be written: /etc/passwd is not a folder that may be written to"
        ],
    ),
    (
        "data: digits",
        "data: digits\ncheckpoints: {{keep: 0}}",
        ["job.yaml:3:21: checkpoints.keep: expected a whole number of 1 or more, not 0"],
    ),
    (
        "data: digits",
        "data: digits\ncheckpoints: {{every: 5}}",
        ["job.yaml:3:15: checkpoints.every: unknown key; did you mean every_minutes?"],
    ),
    (
        "from: a",
        "from: xx://b/c.safetensors",
        [
            "job.yaml:7:45: stages.e.init.from: xx://b/c.safetensors: no such place: Unrecognized filesystem type in URI: xx://b/c.safetensors"
        ],
    ),
    (
        "storage: {storage}",
        "storage: ~no-such-user/x",
        [
            "job.yaml:3:10: storage: ~no-such-user/x: expected a whole path (from / or ~) of a folder that all nodes share, or a URI"
        ],
    ),
    (
        "storage: {storage}",
        "storage: {storage}/" + "x" * 300,
        [f"job.yaml:3:10: storage: {{storage}}/{'x' * 300}/runs/t cannot be written: File name too long"],
    ),
    (
        "data: digits",
        "data: /no/such/place",
        ["job.yaml:2:7: data: expected a mapping of train and val, or digits, not '/no/such/place'"],
    ),
    (
        "epochs: 1",
        "recipe: torchvison",
        [
            "job.yaml:4:45: train.recipe: expected paper or torchvision, or null, not 'torchvison'; did you mean torchvision?"
        ],
    ),
    (
        "scale: 32}}",
        "scale: 32, recipe: 7}}",
        ["job.yaml:6:34: stages.a.recipe: expected paper or torchvision, or null, not 7"],
    ),
    ("scale: 32}}", "scale: 32, recipie: x}}", ["job.yaml:6:26: stages.a.recipie: unknown key; did you mean recipe?"]),
    (
        "epochs: 1",
        "schedule: cosin",
        ["job.yaml:4:47: train.schedule: expected plateau, step or cosine, not 'cosin'; did you mean cosine?"],
    ),
    (
        "epochs: 1",
        "plateau: {{patiance: 2}}",
        ["job.yaml:4:47: train.plateau.patiance: unknown key; did you mean patience?"],
    ),
    (
        "epochs: 1",
        "step: {{every: 2}}",
        [
            "job.yaml:4:37: train.step: does not apply, since schedule is plateau; leave it out (step: null), or choose schedule: step"
        ],
    ),
    (
        "epochs: 1",
        "schedule: cosine, cosine: {{floor: 1}}",
        ["job.yaml:4:71: train.cosine.floor: 1 is not below learning_rate = 0.01"],
    ),
    (
        "epochs: 1",
        "epochs: 9, warmup_epochs: 4, schedule: step, step: {{every: 3}}",
        ["job.yaml:4:63: train.warmup_epochs: the rate would fall (step.every = 3) before it has risen"],
    ),
    (
        "epochs: 1",
        "epochs: 2, warmup_epochs: 2",
        ["job.yaml:4:63: train.warmup_epochs: 2 are not fewer than epochs = 2"],
    ),
    (
        "scale: 32}}",
        "scale: 32, freeze: [conv1]}}",
        ["job.yaml:6:34: stages.a.freeze: 'conv1' is no layer of net A; did you mean conv5_1?"],
    ),
    (
        "epochs: 1",
        "learning_rates: {{fc4: 2}}",
        [
            "job.yaml:4:37: train.learning_rates: 'fc4' is no layer of net A; did you mean fc3?",
            "job.yaml:4:37: train.learning_rates: 'fc4' is no layer of net E; did you mean fc3?",
        ],
    ),
    (
        "epochs: 1",
        "learning_rates: {{fc3: 0}}",
        ["job.yaml:4:59: train.learning_rates.fc3: expected a number above 0, not 0"],
    ),
    (
        "scale: 32}}",
        "scale: 32, freeze: [fc1]}}",
        [
            "job.yaml:6:34: stages.a.freeze: these layers would keep random weights; it does not go without init: {from: ...}"
        ],
    ),
    (
        "from: a}}",
        "from: a}}, freeze: [features, classifier]",
        ["job.yaml:7:57: stages.e.freeze: these are all layers, so that none is trained"],
    ),
    (
        "from: a}}",
        "from: a}}, freeze: [block1]",
        ["job.yaml:7:57: stages.e.freeze: conv1_2 would keep random weights: a net E does not get them from a net A"],
    ),
    (
        "from: a}}",
        "from: a, except: [fc4]}}",
        ["job.yaml:7:56: stages.e.init.except: 'fc4' is no layer of net E; did you mean fc3?"],
    ),
    ("from: a}}", "from: a, exept: [fc3]}}", ["job.yaml:7:48: stages.e.init.exept: unknown key; did you mean except?"]),
    ("from: a}}", "except: [fc3]}}", ["job.yaml:7:47: stages.e.init.except: does not go without init: {from: ...}"]),
    (
        "from: a}}",
        "from: a, except: [features, classifier]}}",
        ["job.yaml:7:56: stages.e.init.except: these are all layers, so that none is copied"],
    ),
    (
        "from: a}}",
        "from: a, except: [fc3]}}, freeze: [classifier]",
        ["job.yaml:7:72: stages.e.freeze: fc3 would keep random weights, being left out by init.except"],
    ),
    (
        "scale: 32}}",
        "scale: 64, input_size: 64}}",
        ["job.yaml:7:45: stages.e.init.from: input_size is 64 in stage a and 32 in this one: fc1 does not fit"],
    ),
    (
        "from: a}}",
        "from: a}}, freeze: [fc1], learning_rates: {{fc1: 2}}",
        ["job.yaml:7:64: stages.e.learning_rates: fc1 is frozen, so it does not go with a learning rate"],
    ),
    ("epochs: 1", "nesterov: true, momentum: 0.0", ["job.yaml:4:47: train.nesterov: does not go without momentum"]),
    (
        "data: digits",
        "data: {{train: /no/train, val: /no/val}}",
        ["job.yaml:2:15: data.train: /no/train: no such data set; `verydeep prepare` makes one"],
    ),
    ("name: t", "name: t\nworkers: 3", ["job.yaml:2:1: workers: unknown key; it belongs in cluster"]),
    ("name: t", "name: t\nepochs: 3", ["job.yaml:2:1: epochs: unknown key; it belongs in train or a stage"]),
    ("name: t", "name: t\nworker: 3", ["job.yaml:2:1: worker: unknown key; did you mean workers, of cluster?"]),
    (
        "name: t",
        "name: t\nxyz: 3",
        [
            "job.yaml:2:1: xyz: unknown key; known are name, data, storage, cluster, checkpoints, stages, evaluations, train"
        ],
    ),
    (
        "epochs: 1",
        "plateau: {{learning_rate: 3}}",
        ["job.yaml:4:47: train.plateau.learning_rate: unknown key; it belongs in train or a stage"],
    ),
    (
        "epochs: 1",
        "plateau: 3",
        ["job.yaml:4:46: train.plateau: expected a mapping of patience, min_gain, factor and drops, or null, not 3"],
    ),
    ("epochs: 1", "epochs: 0", ["job.yaml:4:45: train.epochs: expected a whole number of 1 or more, not 0"]),
    ("epochs: 1", "epochs: 1.5", ["job.yaml:4:45: train.epochs: expected a whole number of 1 or more, not 1.5"]),
    ("epochs: 1", "epochs:", ["job.yaml:4:44: train.epochs: expected a whole number of 1 or more, not null"]),
    (
        "epochs: 1",
        "epochs: [1, 2]",
        [
            "job.yaml:4:45: train.epochs: expected a whole number of 1 or more, not a list; values to be tried one by one are listed in a stage"
        ],
    ),
    (
        "epochs: 1",
        "epochs: {{a: 1}}",
        ["job.yaml:4:45: train.epochs: expected a whole number of 1 or more, not a mapping"],
    ),
    (
        "epochs: 1",
        "seed: 18446744073709551616",
        ["job.yaml:4:43: train.seed: expected a whole number from 0 to below 2^64, not 18446744073709551616"],
    ),
    (
        "epochs: 1",
        "seed: 0xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        ["job.yaml:4:43: train.seed: no setting takes so large a number"],
    ),
    ("epochs: 1", "dropout: 1", ["job.yaml:4:46: train.dropout: expected a number from 0 to below 1, not 1"]),
    (
        "epochs: 1",
        "micro_batch: 0",
        ["job.yaml:4:50: train.micro_batch: expected auto or a whole number of 1 or more, not 0"],
    ),
    ("epochs: 1", "clip_norm: no", ["job.yaml:4:48: train.clip_norm: expected a number above 0, or null, not false"]),
    ("epochs: 1", "flip: 1", ["job.yaml:4:43: train.flip: expected true or false, not 1"]),
    (
        "epochs: 1",
        "init: kaiming",
        ["job.yaml:4:43: train.init: expected a mapping of from, except, random and std, not 'kaiming'"],
    ),
    (
        "epochs: 1",
        "init: {{random: glorott}}",
        [
            "job.yaml:4:52: train.init.random: expected normal, glorot, kaiming or torchvision, not 'glorott'; did you mean glorot?"
        ],
    ),
    (
        "epochs: 1",
        "recipe: [paper]",
        [
            "job.yaml:4:45: train.recipe: expected paper or torchvision, or null, not a list; values to be tried one by one are listed in a stage"
        ],
    ),
    (
        "width: 0.1",
        "width: manymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymanymany",
        ["job.yaml:4:32: train.width: expected a number above 0, not 'manymanymanymanymanymanymanymanymanymany'..."],
    ),
    (
        "{{input_size: 32, width: 0.1, epochs: 1}}",
        "[1]",
        ["job.yaml:4:8: train: expected a mapping of settings, not a list"],
    ),
    (
        "scale: 32}}",
        "scale: [32]}}",
        ["job.yaml:6:22: stages.a.scale: expected a number of pixels, or [smallest, largest], not a list"],
    ),
    (
        "scale: 32}}",
        "scale: 0}}",
        ["job.yaml:6:22: stages.a.scale: expected a number of pixels, or [smallest, largest], not 0"],
    ),
    (
        "scale: 32}}",
        "scale: [0, 5]}}",
        ["job.yaml:6:23: stages.a.scale.0: expected a whole number of 1 or more, not 0"],
    ),
    (
        "stages:\n",
        "stages: 3\nx:\n",
        [
            "job.yaml:5:9: stages: expected a mapping of names, each with a mapping of settings, not 3",
            "job.yaml:6:1: x: unknown key; known are name, data, storage, cluster, checkpoints, stages, evaluations, train",
        ],
    ),
    ("  a: {{net: A, scale: 32}}", "  a:", ["job.yaml:6:5: stages.a: expected a mapping of settings, not null"]),
    ("models: [e]", "models: []", ["job.yaml:9:15: evaluations.t.models: expected at least one, not none"]),
    ("models: [e]", "models: e", ["job.yaml:9:15: evaluations.t.models: expected a list of texts, not 'e'"]),
    ("models: [e]", "models: [3]", ["job.yaml:9:16: evaluations.t.models.0: expected text, not 3"]),
    (
        "models: [e]",
        "models: [e], mode: dens",
        [
            "job.yaml:9:26: evaluations.t.mode: expected dense, multi-crop, both, or a list of several, each once, not 'dens'"
        ],
    ),
    (
        "models: [e]",
        "models: [e], mode: [dense, dense]",
        [
            "job.yaml:9:26: evaluations.t.mode: expected dense, multi-crop, both, or a list of several, each once, not a list"
        ],
    ),
    (
        "models: [e]",
        "models: [e], mode: [dense, sparse]",
        ["job.yaml:9:34: evaluations.t.mode.1: expected dense, multi-crop or both, not 'sparse'"],
    ),
    (
        "models: [e]",
        "models: [e], scales: [256, x]",
        [
            "job.yaml:9:28: evaluations.t.scales: expected single, several, or a list of Q in pixels, such as [256, 384, 512], not a list"
        ],
    ),
    (
        "models: [e]",
        "models: [e], scale: 256",
        ["job.yaml:9:20: evaluations.t.scale: unknown key; did you mean scales?"],
    ),
    ("models: [e]", "models: [e], fuse: true", ["job.yaml:9:26: evaluations.t.fuse: takes two models or more"]),
    ("data: digits", "data: {{train: /x}}", ["job.yaml:2:1: data.val: is missing; expected text"]),
    ("data: digits", "data: {{train: /x, val: ''}}", ["job.yaml:2:24: data.val: expected text, not ''"]),
    (
        "data: digits",
        "data: digit",
        ["job.yaml:2:7: data: expected a mapping of train and val, or digits, not 'digit'; did you mean digits?"],
    ),
    (
        "data: digits",
        "data: digits\ncluster: {{workers: many}}",
        ["job.yaml:3:20: cluster.workers: expected a number of workers, or [least, most], not 'many'"],
    ),
    (
        "data: digits",
        "data: digits\ncluster: {{workers: [3, 2]}}",
        ["job.yaml:3:20: cluster.workers: the least (3) is above the most (2)"],
    ),
    (
        "data: digits",
        "data: digits\ncluster: {{gpus_per_worker: 2}}",
        ["job.yaml:3:28: cluster.gpus_per_worker: expected auto or a whole number from 0 to 1, not 2"],
    ),
    (
        "data: digits",
        "data: digits\ncluster: {{keep: 2}}",
        ["job.yaml:3:11: cluster.keep: unknown key; it belongs in checkpoints"],
    ),
    ("from: a}}", "from: a}}, after: [b]", ["job.yaml:7:57: stages.e.after.0: no stage is called 'b'; there are a, e"]),
    (
        "name: t",
        "name: a/b",
        [
            "job.yaml:1:7: name: expected at most 100 letters, digits, points, hyphens and underscores, the first a letter or digit, not 'a/b'"
        ],
    ),
    (
        "name: t",
        'name: ""',
        [
            "job.yaml:1:7: name: expected at most 100 letters, digits, points, hyphens and underscores, the first a letter or digit, not ''"
        ],
    ),
    ("name: t", 'name: "a\\0b"', ["job.yaml:1:7: name: no key and no setting may have the character '\\x00'"]),
    ("name: t", 'name: "\\ud800"', ["job.yaml:1:7: name: no key and no setting may have the character '\\ud800'"]),
    ("name: t", "[a, b]: t", ["job.yaml:1:1: a key is one word, not a list or a mapping"]),
    (
        "name: t",
        "name: !!python/object:os.system x",
        [
            "job.yaml:1:7: name: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"
        ],
    ),
    (
        "name: t",
        "name: !!set {{a}}",
        ["job.yaml:1:7: name: not YAML that a job file may have: the tag tag:yaml.org,2002:set"],
    ),
    ("name: t", "name: t\x07", ["job.yaml:1:8: not YAML: a character that may not be written as it is: '\\x07'"]),
    ("  a: {{net: A", "  a: {{<<: 3, net: A", ["job.yaml:6:7: stages.a.<<: expected a mapping, or a list of mappings"]),
]
