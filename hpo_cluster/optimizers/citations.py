"""What to cite for an optimizer: the papers that it follows and the libraries that compute its proposals, as BibTeX.

A field that was not certain is left out. An optimizer that has no paper of its own (`mosaic`) names those it builds on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: By key: an entry of BibTeX.
ENTRIES: Mapping[str, str] = {
    "akiba2019optuna": r"""@inproceedings{akiba2019optuna,
  author    = {Akiba, Takuya and Sano, Shotaro and Yanase, Toshihiko and Ohta, Takeru and Koyama, Masanori},
  title     = {{Optuna}: A Next-generation Hyperparameter Optimization Framework},
  booktitle = {Proceedings of the 25th {ACM} {SIGKDD} International Conference on Knowledge Discovery and Data Mining},
  pages     = {2623--2631},
  year      = {2019},
  doi       = {10.1145/3292500.3330701}
}""",
    "ament2023logei": r"""@inproceedings{ament2023logei,
  author    = {Ament, Sebastian and Daulton, Samuel and Eriksson, David and Balandat, Maximilian and Bakshy, Eytan},
  title     = {Unexpected Improvements to Expected Improvement for {Bayesian} Optimization},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {36},
  year      = {2023},
  note      = {arXiv:2310.20708}
}""",
    "audet2022nomad": r"""@article{audet2022nomad,
  author  = {Audet, C. and Le Digabel, S. and Rochon Montplaisir, V. and Tribes, C.},
  title   = {Algorithm 1027: {NOMAD} Version 4: Nonlinear Optimization with the {MADS} Algorithm},
  journal = {ACM Transactions on Mathematical Software},
  volume  = {48},
  number  = {3},
  year    = {2022},
  doi     = {10.1145/3544489}
}""",
    "balandat2020botorch": r"""@inproceedings{balandat2020botorch,
  author    = {Balandat, Maximilian and Karrer, Brian and Jiang, Daniel R. and Daulton, Samuel and Letham, Benjamin and
               Wilson, Andrew Gordon and Bakshy, Eytan},
  title     = {{BoTorch}: A Framework for Efficient {Monte-Carlo} {Bayesian} Optimization},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  year      = {2020},
  note      = {arXiv:1910.06403}
}""",
    "bergstra2011tpe": r"""@inproceedings{bergstra2011tpe,
  author    = {Bergstra, James and Bardenet, R{\'e}mi and Bengio, Yoshua and K{\'e}gl, Bal{\'a}zs},
  title     = {Algorithms for Hyper-Parameter Optimization},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {24},
  pages     = {2546--2554},
  year      = {2011}
}""",
    "bergstra2012random": r"""@article{bergstra2012random,
  author  = {Bergstra, James and Bengio, Yoshua},
  title   = {Random Search for Hyper-Parameter Optimization},
  journal = {Journal of Machine Learning Research},
  volume  = {13},
  pages   = {281--305},
  year    = {2012}
}""",
    "daulton2021nehvi": r"""@inproceedings{daulton2021nehvi,
  author    = {Daulton, Samuel and Balandat, Maximilian and Bakshy, Eytan},
  title     = {Parallel {Bayesian} Optimization of Multiple Noisy Objectives with Expected Hypervolume Improvement},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {34},
  year      = {2021},
  note      = {arXiv:2105.08195}
}""",
    "deb2002nsga2": r"""@article{deb2002nsga2,
  author  = {Deb, Kalyanmoy and Pratap, Amrit and Agarwal, Sameer and Meyarivan, T.},
  title   = {A Fast and Elitist Multiobjective Genetic Algorithm: {NSGA-II}},
  journal = {IEEE Transactions on Evolutionary Computation},
  volume  = {6},
  number  = {2},
  pages   = {182--197},
  year    = {2002},
  doi     = {10.1109/4235.996017}
}""",
    "eriksson2019turbo": r"""@inproceedings{eriksson2019turbo,
  author    = {Eriksson, David and Pearce, Michael and Gardner, Jacob and Turner, Ryan D. and Poloczek, Matthias},
  title     = {Scalable Global Optimization via Local {Bayesian} Optimization},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {32},
  pages     = {5496--5507},
  year      = {2019}
}""",
    "falkner2018bohb": r"""@inproceedings{falkner2018bohb,
  author    = {Falkner, Stefan and Klein, Aaron and Hutter, Frank},
  title     = {{BOHB}: Robust and Efficient Hyperparameter Optimization at Scale},
  booktitle = {Proceedings of the 35th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {80},
  pages     = {1437--1446},
  year      = {2018}
}""",
    "firmin2022fractal": r"""@unpublished{firmin2022fractal,
  author = {Firmin, Thomas and Talbi, El-Ghazali},
  title  = {A Fractal-Based Decomposition Framework for Continuous Optimization},
  year   = {2022},
  note   = {Preprint hal-04474444}
}""",
    "gablonsky2001direct": r"""@article{gablonsky2001direct,
  author  = {Gablonsky, Joerg M. and Kelley, Carl T.},
  title   = {A Locally-Biased Form of the {DIRECT} Algorithm},
  journal = {Journal of Global Optimization},
  volume  = {21},
  number  = {1},
  pages   = {27--37},
  year    = {2001},
  doi     = {10.1023/A:1017930332101}
}""",
    "gardner2018gpytorch": r"""@inproceedings{gardner2018gpytorch,
  author    = {Gardner, Jacob R. and Pleiss, Geoff and Bindel, David and Weinberger, Kilian Q. and
               Wilson, Andrew Gordon},
  title     = {{GPyTorch}: Blackbox Matrix-Matrix {Gaussian} Process Inference with {GPU} Acceleration},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}""",
    "hvarfner2022pibo": r"""@inproceedings{hvarfner2022pibo,
  author    = {Hvarfner, C. and Stoll, D. and Souza, A. and Lindauer, M. and Hutter, F. and Nardi, L.},
  title     = {{piBO}: Augmenting Acquisition Functions with User Beliefs for {Bayesian} Optimization},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2204.11051}
}""",
    "jones1993direct": r"""@article{jones1993direct,
  author  = {Jones, Donald R. and Perttunen, Cary D. and Stuckman, Bruce E.},
  title   = {{Lipschitzian} Optimization without the {Lipschitz} Constant},
  journal = {Journal of Optimization Theory and Applications},
  volume  = {79},
  number  = {1},
  pages   = {157--181},
  year    = {1993},
  doi     = {10.1007/BF00941892}
}""",
    "knowles2006parego": r"""@article{knowles2006parego,
  author  = {Knowles, Joshua},
  title   = {{ParEGO}: A Hybrid Algorithm with On-Line Landscape Approximation for Expensive Multiobjective Optimization
             Problems},
  journal = {IEEE Transactions on Evolutionary Computation},
  volume  = {10},
  number  = {1},
  pages   = {50--66},
  year    = {2006}
}""",
    "li2018hyperband": r"""@article{li2018hyperband,
  author  = {Li, Lisha and Jamieson, Kevin and DeSalvo, Giulia and Rostamizadeh, Afshin and Talwalkar, Ameet},
  title   = {{Hyperband}: A Novel Bandit-Based Approach to Hyperparameter Optimization},
  journal = {Journal of Machine Learning Research},
  volume  = {18},
  number  = {185},
  pages   = {1--52},
  year    = {2018}
}""",
    "li2020asha": r"""@inproceedings{li2020asha,
  author    = {Li, Liam and Jamieson, Kevin and Rostamizadeh, Afshin and Gonina, Ekaterina and Ben-tzur, Jonathan and
               Hardt, Moritz and Recht, Benjamin and Talwalkar, Ameet},
  title     = {A System for Massively Parallel Hyperparameter Tuning},
  booktitle = {Proceedings of Machine Learning and Systems},
  volume    = {2},
  year      = {2020},
  note      = {arXiv:1810.05934}
}""",
    "mckay1979lhs": r"""@article{mckay1979lhs,
  author  = {McKay, Michael D. and Beckman, Richard J. and Conover, William J.},
  title   = {A Comparison of Three Methods for Selecting Values of Input Variables in the Analysis of Output from a
             Computer Code},
  journal = {Technometrics},
  volume  = {21},
  number  = {2},
  pages   = {239--245},
  year    = {1979},
  doi     = {10.2307/1268522}
}""",
    "munos2011soo": r"""@inproceedings{munos2011soo,
  author    = {Munos, R{\'e}mi},
  title     = {Optimistic Optimization of a Deterministic Function without the Knowledge of its Smoothness},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {24},
  pages     = {783--791},
  year      = {2011}
}""",
    "nakib2017fda": r"""@article{nakib2017fda,
  author  = {Nakib, A. and Ouchraa, S. and Shvai, N. and Souquet, L. and Talbi, E.-G.},
  title   = {Deterministic Metaheuristic Based on Fractal Decomposition for Large-Scale Optimization},
  journal = {Applied Soft Computing},
  volume  = {61},
  pages   = {468--485},
  year    = {2017},
  doi     = {10.1016/j.asoc.2017.07.042}
}""",
    "owen1998scrambling": r"""@article{owen1998scrambling,
  author  = {Owen, Art B.},
  title   = {Scrambling {Sobol'} and {Niederreiter-Xing} Points},
  journal = {Journal of Complexity},
  volume  = {14},
  number  = {4},
  pages   = {466--489},
  year    = {1998},
  doi     = {10.1006/jcom.1998.0487}
}""",
    "rapin2018nevergrad": r"""@misc{rapin2018nevergrad,
  author       = {Rapin, J. and Teytaud, O.},
  title        = {{Nevergrad}: A Gradient-Free Optimization Platform},
  year         = {2018},
  howpublished = {\url{https://github.com/facebookresearch/nevergrad}}
}""",
    "sobol1967points": r"""@article{sobol1967points,
  author  = {Sobol', I. M.},
  title   = {On the Distribution of Points in a Cube and the Approximate Evaluation of Integrals},
  journal = {USSR Computational Mathematics and Mathematical Physics},
  volume  = {7},
  number  = {4},
  pages   = {86--112},
  year    = {1967}
}""",
    "srinivas2010ucb": r"""@inproceedings{srinivas2010ucb,
  author    = {Srinivas, Niranjan and Krause, Andreas and Kakade, Sham M. and Seeger, Matthias},
  title     = {{Gaussian} Process Optimization in the Bandit Setting: No Regret and Experimental Design},
  booktitle = {Proceedings of the 27th International Conference on Machine Learning},
  year      = {2010},
  note      = {arXiv:0912.3995}
}""",
    "wang2014bamsoo": r"""@inproceedings{wang2014bamsoo,
  author    = {Wang, Ziyu and Shakibi, Babak and Jin, Lin and de Freitas, Nando},
  title     = {{Bayesian} Multi-Scale Optimistic Optimization},
  booktitle = {Proceedings of the 17th International Conference on Artificial Intelligence and Statistics},
  series    = {JMLR Workshop and Conference Proceedings},
  volume    = {33},
  pages     = {1005--1014},
  year      = {2014}
}""",
}

_MODEL = ("balandat2020botorch", "gardner2018gpytorch")

#: By optimizer: keys of what to cite, the paper first.
CITATIONS: Mapping[str, tuple[str, ...]] = {
    "random": ("bergstra2012random",),
    "lhs": ("mckay1979lhs",),
    "sobol": ("sobol1967points", "owen1998scrambling"),
    "grid": (),
    "asha": ("li2020asha",),
    "hyperband": ("li2018hyperband", "li2020asha"),
    "bohb": ("falkner2018bohb", "li2020asha"),
    "bo": _MODEL,
    "soo": ("munos2011soo",),
    "bamsoo": ("wang2014bamsoo", *_MODEL),
    "direct": ("jones1993direct",),
    "direct_l": ("gablonsky2001direct", "jones1993direct"),
    "fda": ("nakib2017fda", "firmin2022fractal"),
    "turbo": ("eriksson2019turbo", *_MODEL),
    "mosaic": ("munos2011soo", "eriksson2019turbo", "ament2023logei", *_MODEL),
    "optuna": ("akiba2019optuna",),
    "nevergrad": ("rapin2018nevergrad",),
    "nomad": ("audet2022nomad",),
}

#: By optimizer, a setting and its value: keys of what to cite in addition.
BY_SETTING: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("bo", "acquisition", "qlognei"): ("ament2023logei",),
    ("bo", "acquisition", "log_ei"): ("ament2023logei",),
    ("bo", "acquisition", "ucb"): ("srinivas2010ucb",),
    ("bo", "acquisition", "parego"): ("knowles2006parego",),
    ("optuna", "sampler", "tpe"): ("bergstra2011tpe",),
    ("optuna", "sampler", "nsga2"): ("deb2002nsga2",),
}

#: Most objectives whose hypervolume `bo` improves (its `WEIGHTED`); it weights more of them at random.
MOST_BY_VOLUME = 4
#: Optimizers that weight what they maximise by the priors of the space.
WITH_PRIORS = ("bo", "mosaic")


def citations_of(optimizer: Mapping[str, Any], *, has_prior: bool = False, objectives: int = 0) -> list[str]:
    """Return the keys of what to cite for an optimizer.

    Args:
        optimizer: its name and its settings, as a campaign's identity has them.
        has_prior: whether the space has priors.
        objectives: number of metrics that are optimised together, if they are several.
    """
    name = str(optimizer.get("name"))
    keys = list(CITATIONS.get(name, ()))
    for (whose, setting, value), more in BY_SETTING.items():
        if whose == name and optimizer.get(setting) == value:
            keys += more
    if objectives > 1 and name == "bo" and optimizer.get("acquisition") == "qlognei":
        keys.append("daulton2021nehvi" if objectives <= MOST_BY_VOLUME else "knowles2006parego")
    if has_prior and name in WITH_PRIORS:
        keys.append("hvarfner2022pibo")
    return list(dict.fromkeys(keys))
