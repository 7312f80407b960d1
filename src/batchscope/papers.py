"""Which papers do the numbers rest on? A table, in the order in which they were needed; `references` cites them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One source: `cite` prints it on one line."""

    key: str
    authors: str
    year: int
    title: str
    arxiv: str | None = None
    where: str = ""

    def __str__(self) -> str:
        place = f"arXiv:{self.arxiv}" if self.arxiv else self.where
        return f"{self.authors} ({self.year}). {self.title}. {place}"


PAPERS = (
    Reference(
        "keskar2016",
        "Keskar, Mudigere, Nocedal, Smelyanskiy, Tang",
        2016,
        "On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima",
        "1609.04836",
    ),
    Reference(
        "mccandlish2018",
        "McCandlish, Kaplan, Amodei, OpenAI Dota Team",
        2018,
        "An Empirical Model of Large-Batch Training",
        "1812.06162",
    ),
    Reference(
        "shallue2019",
        "Shallue, Lee, Antognini, Sohl-Dickstein, Frostig, Dahl",
        2019,
        "Measuring the Effects of Data Parallelism on Neural Network Training",
        "1811.03600",
    ),
    Reference(
        "zhang2024",
        "Zhang, Morwani, Vyas, Wu, Zou, Ghai, Foster, Kakade",
        2024,
        "How Does Critical Batch Size Scale in Pre-training?",
        "2410.21676",
    ),
    Reference(
        "goyal2017",
        "Goyal, Dollár, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia, He",
        2017,
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
        "1706.02677",
    ),
    Reference(
        "smith2018",
        "Smith, Kindermans, Ying, Le",
        2018,
        "Don't Decay the Learning Rate, Increase the Batch Size",
        "1711.00489",
    ),
    Reference(
        "hoffer2017",
        "Hoffer, Hubara, Soudry",
        2017,
        "Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
        "1705.08741",
    ),
    Reference(
        "holm1979",
        "Holm",
        1979,
        "A Simple Sequentially Rejective Multiple Test Procedure",
        where="Scandinavian Journal of Statistics 6(2), 65-70",
    ),
    Reference(
        "schmee1979",
        "Schmee, Hahn",
        1979,
        "A Simple Method for Regression Analysis with Censored Data",
        where="Technometrics 21(4), 417-432",
    ),
    Reference(
        "zou2008",
        "Zou, Donner",
        2008,
        "Construction of confidence limits about effect measures: A general approach",
        where="Statistics in Medicine 27(10), 1693-1702",
    ),
    Reference(
        "chang2020",
        "Chang, Pathak",
        2020,
        "Effect of Batch Size on Neural Net Training",
        where="Medium, 25 May 2020",
    ),
    Reference(
        "fieller1954",
        "Fieller",
        1954,
        "Some Problems in Interval Estimation",
        where="Journal of the Royal Statistical Society B 16(2), 175-185",
    ),
    Reference(
        "vonneumann1941",
        "von Neumann",
        1941,
        "Distribution of the Ratio of the Mean Square Successive Difference to the Variance",
        where="Annals of Mathematical Statistics 12(4), 367-395",
    ),
    Reference(
        "andrews1992",
        "Andrews, Monahan",
        1992,
        "An Improved Heteroskedasticity and Autocorrelation Consistent Covariance Matrix Estimator",
        where="Econometrica 60(4), 953-966",
    ),
    Reference(
        "gray2024",
        "Gray, Tiwari, Bergsma, Hestness",
        2024,
        "Normalization Layer Per-Example Gradients are Sufficient to Predict Gradient Noise Scale in Transformers",
        "2411.00999",
    ),
    Reference(
        "merrill2025",
        "Merrill, Arora, Groeneveld, Hajishirzi",
        2025,
        "Critical Batch Size Revisited: A Simple Empirical Approach to Large-Batch Language Model Training",
        "2505.23971",
    ),
    Reference(
        "li2024",
        "Li, Zhao, Zhang, Sun, Wu, et al.",
        2024,
        "Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling",
        "2405.14578",
    ),
    Reference(
        "frazier2009",
        "Frazier, Powell, Dayanik",
        2009,
        "The Knowledge-Gradient Policy for Correlated Normal Beliefs",
        where="INFORMS Journal on Computing 21(4), 599-613",
    ),
    Reference(
        "delmoral2006",
        "Del Moral, Doucet, Jasra",
        2006,
        "Sequential Monte Carlo Samplers",
        where="Journal of the Royal Statistical Society B 68(3), 411-436",
    ),
    Reference(
        "naganuma2026",
        "Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi",
        2026,
        "Adaptive Batch Sizes Using Non-Euclidean Gradient Noise Scales for Stochastic Sign and Spectral Descent",
        "2602.03001",
    ),
    Reference(
        "patarasuk2009",
        "Patarasuk, Yuan",
        2009,
        "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
        where="Journal of Parallel and Distributed Computing 69(2), 117-124",
    ),
    Reference(
        "sanders2009",
        "Sanders, Speck, Träff",
        2009,
        "Two-tree Algorithms for Full Bandwidth Broadcast, Reduction and Scan",
        where="Parallel Computing 35(12), 581-594",
    ),
    Reference(
        "qiao2021",
        "Qiao, Choe, Subramanya, Neiswanger, Ho, Zhang, Ganger, Xing",
        2021,
        "Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning",
        "2008.12260",
    ),
    Reference(
        "dinh2017",
        "Dinh, Pascanu, Bengio, Bengio",
        2017,
        "Sharp Minima Can Generalize For Deep Nets",
        "1703.04933",
    ),
    Reference(
        "li2018",
        "Li, Xu, Taylor, Studer, Goldstein",
        2018,
        "Visualizing the Loss Landscape of Neural Nets",
        "1712.09913",
    ),
    Reference(
        "kwon2021",
        "Kwon, Kim, Park, Choi",
        2021,
        "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
        "2102.11600",
    ),
    Reference(
        "cohen2021",
        "Cohen, Kaur, Li, Kolter, Talwalkar",
        2021,
        "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        "2103.00065",
    ),
    Reference(
        "andreyev2024",
        "Andreyev, Beneventano",
        2024,
        "Edge of Stochastic Stability: Revisiting the Edge of Stability for SGD",
        "2412.20553",
    ),
    Reference(
        "hutchinson1990",
        "Hutchinson",
        1990,
        "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines",
        where="Communications in Statistics: Simulation and Computation 19(2), 433-450",
    ),
    Reference(
        "meyer2021",
        "Meyer, Musco, Musco, Woodruff",
        2021,
        "Hutch++: Optimal Stochastic Trace Estimation",
        "2010.09649",
    ),
    Reference(
        "ubaru2017",
        "Ubaru, Chen, Saad",
        2017,
        "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
        where="SIAM Journal on Matrix Analysis and Applications 38(4), 1075-1099",
    ),
    Reference(
        "krizhevsky2014",
        "Krizhevsky",
        2014,
        "One weird trick for parallelizing convolutional neural networks",
        where="arXiv:1404.5997",
    ),
    Reference(
        "malladi2022",
        "Malladi, Lyu, Panigrahi, Arora",
        2022,
        "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
        "2205.10287",
    ),
    Reference(
        "marek2025",
        "Marek, Lotfi, Somasundaram, Wilson, Goldblum",
        2025,
        "Small Batch Size Training for Language Models: When Vanilla SGD Works, and Why Gradient Accumulation Is "
        "Wasteful",
        "2507.07101",
    ),
    Reference(
        "you2017",
        "You, Gitman, Ginsburg",
        2017,
        "Large Batch Training of Convolutional Networks",
        "1708.03888",
    ),
    Reference(
        "you2019",
        "You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh",
        2019,
        "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        "1904.00962",
    ),
    Reference(
        "bergsma2025",
        "Bergsma, Dey, Gosal, Gray, Soboleva, Hestness",
        2025,
        "Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training",
        "2505.13738",
    ),
    Reference(
        "izmailov2018",
        "Izmailov, Podoprikhin, Garipov, Vetrov, Wilson",
        2018,
        "Averaging Weights Leads to Wider Optima and Better Generalization",
        "1803.05407",
    ),
    Reference(
        "szegedy2016",
        "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna",
        2016,
        "Rethinking the Inception Architecture for Computer Vision",
        "1512.00567",
    ),
    Reference(
        "busbridge2023",
        "Busbridge, Ramapuram, Ablin, Likhomanenko, Dhekane, Suau, Webb",
        2023,
        "How to Scale Your EMA",
        "2307.13813",
    ),
    Reference(
        "foret2021",
        "Foret, Kleiner, Mobahi, Neyshabur",
        2021,
        "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        "2010.01412",
    ),
    Reference(
        "johnson2020",
        "Johnson, Agrawal, Gu, Guestrin",
        2020,
        "AdaScale SGD: A User-Friendly Algorithm for Distributed Training",
        "2007.05105",
    ),
    Reference(
        "jamieson2016",
        "Jamieson, Talwalkar",
        2016,
        "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
        "1502.07943",
    ),
)
